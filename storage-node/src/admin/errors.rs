//! How an [`OperationError`] looks on the wire, and back: gRPC code, a sentence for people, and the redirect.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::operations::OperationError;

/// Metadata key of the admin address that must be asked instead.
pub const REDIRECT_KEY: &str = "tandem-redirect";

impl From<OperationError> for Status {
    fn from(error: OperationError) -> Status {
        let text = error.to_string();
        let code = match &error {
            OperationError::Invalid(_) => Code::InvalidArgument,
            OperationError::NotFound(_) => Code::NotFound,
            OperationError::AlreadyExists(_) => Code::AlreadyExists,
            OperationError::Refused(_) | OperationError::NotHere { .. } | OperationError::NotInCluster => {
                Code::FailedPrecondition
            }
            OperationError::Timeout(_) => Code::DeadlineExceeded,
            OperationError::Unavailable(_) => Code::Unavailable,
            OperationError::Failed(_) => Code::Internal,
        };
        let mut status = Status::new(code, text);
        if let OperationError::NotHere { admin_address, .. } = &error
            && let Ok(value) = MetadataValue::try_from(admin_address.as_str())
        {
            status.metadata_mut().insert(REDIRECT_KEY, value);
        }
        status
    }
}

/// The admin address that a refusal points to, if it does.
pub fn redirect_of(status: &Status) -> Option<String> {
    status.metadata().get(REDIRECT_KEY)?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proto::NodeId;

    use super::*;

    #[test]
    fn a_redirect_survives_the_wire_form() {
        let error = OperationError::NotHere {
            node: NodeId(2),
            admin_address: "10.0.0.2:7401".into(),
            why: "box-b is primary".into(),
        };
        let status = Status::from(error);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(redirect_of(&status).as_deref(), Some("10.0.0.2:7401"));
        assert!(status.message().contains("box-b is primary"));
    }

    #[test]
    fn a_guard_has_no_redirect() {
        let status = Status::from(OperationError::Refused("no".into()));
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(redirect_of(&status), None);
    }

    #[test]
    fn codes_tell_what_the_caller_can_do() {
        let codes = [
            (OperationError::Invalid(String::new()), Code::InvalidArgument),
            (OperationError::NotFound(String::new()), Code::NotFound),
            (OperationError::AlreadyExists(String::new()), Code::AlreadyExists),
            (OperationError::NotInCluster, Code::FailedPrecondition),
            (OperationError::Timeout(String::new()), Code::DeadlineExceeded),
            (OperationError::Unavailable(String::new()), Code::Unavailable),
            (OperationError::Failed(String::new()), Code::Internal),
        ];
        for (error, code) in codes {
            assert_eq!(Status::from(error).code(), code);
        }
    }
}
