//! What a worker tells its supervisor, one line of JSON: who it is, and who is to hear of its end.

use proto::{ClusterId, Incarnation, NodeId};
use serde::{Deserialize, Serialize};

use crate::peer::Identity;

/// Who runs, and the peers' addresses (`host:port`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// Cluster.
    pub cluster: u128,
    /// Node.
    pub node: u64,
    /// Its run.
    pub incarnation: u64,
    /// Every other node's peer listener.
    pub peers: Vec<String>,
}

impl Announcement {
    /// Of `identity`, for `peers`.
    pub fn new(identity: Identity, peers: Vec<String>) -> Self {
        let Identity { cluster, node, incarnation } = identity;
        Self { cluster: cluster.0, node: node.0, incarnation: incarnation.0, peers }
    }

    /// Who ran.
    pub fn identity(&self) -> Identity {
        Identity {
            cluster: ClusterId(self.cluster),
            node: NodeId(self.node),
            incarnation: Incarnation(self.incarnation),
        }
    }

    /// As a line, with its end.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("plain data has a JSON form");
        line.push('\n');
        line
    }

    /// From a line; `None` when it is something else.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_survives_its_line_and_half_a_line_is_nothing() {
        let announcement =
            Announcement { cluster: u128::MAX, node: 1, incarnation: u64::MAX, peers: vec!["a:1".into()] };
        let line = announcement.to_line();
        assert_eq!(Announcement::parse(&line).as_ref(), Some(&announcement));
        assert_eq!(Announcement::parse(&line[..line.len() / 2]), None);
        assert_eq!(Announcement::parse("up\n"), None);
    }
}
