//! Between the messages about NFS services and the state machine's types. Everything that comes in is checked.

use proto::admin as pb;
use replication::config::nfs::{ANONYMOUS_ID, Access, ExportRule, FloatingAddress, NfsService, Squash};
use replication::config::{ClusterState, VolumeConfig};

use super::operations::OperationError;
use crate::net::address_text::{client_text, floating, host_of, host_port, parse_client, to_std};

/// A service as a message. Without a floating address it is where the primary's NBD listener is, as far as the state tells.
pub(super) fn service_message(state: &ClusterState, config: &VolumeConfig, service: &NfsService) -> pb::NfsService {
    let own = state.nodes.get(&config.primary).map_or("", |node| host_of(&node.nbd_address));
    service_reached_at(service, own)
}

/// A service as a message. `own_host` is where the primary is reached without a floating address; empty if not known.
pub(super) fn service_reached_at(service: &NfsService, own_host: &str) -> pb::NfsService {
    let floating = service.addresses.iter().map(|address| to_std(address.address).to_string());
    let own = (service.addresses.is_empty() && !own_host.is_empty()).then(|| own_host.to_owned());
    pb::NfsService {
        addresses: service.addresses.iter().map(floating_message).collect(),
        port: service.port.into(),
        exports: service.exports.as_slice().iter().map(rule_message).collect(),
        version: service.version.0,
        reached_at: floating.chain(own).map(|host| host_port(&host, service.port)).collect(),
    }
}

fn floating_message(address: &FloatingAddress) -> pb::FloatingAddress {
    pb::FloatingAddress {
        address: to_std(address.address).to_string(),
        prefix_length: address.prefix_length.into(),
        interface: address.interface.clone(),
    }
}

/// A floating address from a request.
pub(super) fn floating_from(message: &pb::FloatingAddress) -> Result<FloatingAddress, OperationError> {
    let prefix_length = u8::try_from(message.prefix_length).unwrap_or(u8::MAX);
    floating(&message.address, prefix_length, &message.interface).map_err(|why| {
        let pb::FloatingAddress { address, prefix_length, interface } = message;
        OperationError::Invalid(format!("{address}/{prefix_length}@{interface} is no floating address: {why}"))
    })
}

/// A rule as a message.
pub(super) fn rule_message(rule: &ExportRule) -> pb::ExportRule {
    let mut message = pb::ExportRule {
        client: client_text(rule.client),
        anonymous_uid: Some(rule.anonymous_uid),
        anonymous_gid: Some(rule.anonymous_gid),
        ..pb::ExportRule::default()
    };
    message.set_access(match rule.access {
        Access::ReadOnly => pb::ExportAccess::ReadOnly,
        Access::ReadWrite => pb::ExportAccess::ReadWrite,
    });
    message.set_squash(match rule.squash {
        Squash::Root => pb::ExportSquash::Root,
        Squash::All => pb::ExportSquash::All,
        Squash::None => pb::ExportSquash::None,
    });
    message
}

/// A rule from a request.
pub(super) fn rule_from(message: &pb::ExportRule) -> Result<ExportRule, OperationError> {
    // A word that this version does not know must not become one that gives more than was meant.
    let access = pb::ExportAccess::try_from(message.access)
        .map_err(|_| OperationError::Invalid("the rule has an access that this version does not know".into()))?;
    let squash = pb::ExportSquash::try_from(message.squash)
        .map_err(|_| OperationError::Invalid("the rule has a squash mode that this version does not know".into()))?;
    Ok(ExportRule {
        client: parse_client(&message.client).map_err(OperationError::Invalid)?,
        access: match access {
            pb::ExportAccess::ReadOnly | pb::ExportAccess::Unspecified => Access::ReadOnly,
            pb::ExportAccess::ReadWrite => Access::ReadWrite,
        },
        squash: match squash {
            pb::ExportSquash::Root | pb::ExportSquash::Unspecified => Squash::Root,
            pb::ExportSquash::All => Squash::All,
            pb::ExportSquash::None => Squash::None,
        },
        anonymous_uid: message.anonymous_uid.unwrap_or(ANONYMOUS_ID),
        anonymous_gid: message.anonymous_gid.unwrap_or(ANONYMOUS_ID),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_survives_the_way_through_its_message() {
        for access in [Access::ReadOnly, Access::ReadWrite] {
            for squash in [Squash::Root, Squash::All, Squash::None] {
                let client = parse_client("10.0.0.0/24").expect("a client");
                let rule = ExportRule { client, access, squash, anonymous_uid: 0, anonymous_gid: u32::MAX };
                assert_eq!(rule_from(&rule_message(&rule)), Ok(rule));
            }
        }
    }

    #[test]
    fn what_a_request_leaves_out_is_the_careful_choice() {
        let rule = rule_from(&pb::ExportRule { client: "*".into(), ..pb::ExportRule::default() }).expect("a rule");
        assert_eq!((rule.access, rule.squash), (Access::ReadOnly, Squash::Root));
        assert_eq!((rule.anonymous_uid, rule.anonymous_gid), (65534, 65534));
        assert!(
            matches!(rule_from(&pb::ExportRule::default()), Err(OperationError::Invalid(_))),
            "a rule about nobody"
        );
    }

    #[test]
    fn hostile_requests_are_invalid() {
        let rule = |access, squash| pb::ExportRule { client: "*".into(), access, squash, ..pb::ExportRule::default() };
        for bad in [rule(3, 1), rule(1, 4), rule(-1, 1)] {
            assert!(matches!(rule_from(&bad), Err(OperationError::Invalid(_))), "{bad:?}");
        }
        let address = |address: &str, prefix_length, interface: &str| pb::FloatingAddress {
            address: address.into(),
            prefix_length,
            interface: interface.into(),
        };
        assert!(floating_from(&address("10.0.0.50", 24, "eth0")).is_ok());
        for bad in [address("10.0.0.50", 256 + 24, "eth0"), address("10.0.0.50", 24, "a/b"), address("", 24, "eth0")] {
            assert!(matches!(floating_from(&bad), Err(OperationError::Invalid(_))), "{bad:?}");
        }
    }
}
