//! The first exchange on a connection, from either side. Reads exactly the bytes of the handshake, so that whoever takes
//! the stream afterwards finds everything that follows.

use std::io;
use std::time::Duration;

use proto::peer::handshake::{ANSWER_BYTES, Answer, LinkKind, OFFER_BYTES, Offer};
use proto::peer::version::{ProtocolVersion, SUPPORTED};
use proto::{Incarnation, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::{Identity, LinkError};
use crate::net::transport::{Stream, Transport};

/// Time for a connection to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for a whole handshake, from either side's view.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a handshake agreed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    /// Version of the frames that follow.
    pub(super) version: ProtocolVersion,
    /// The other side's run.
    pub(super) incarnation: Incarnation,
}

/// Connects to `address` and offers a connection of `kind` to node `to`.
pub(super) async fn dial(
    transport: &Transport,
    address: &str,
    me: Identity,
    to: NodeId,
    kind: LinkKind,
) -> Result<(Stream, Agreed), LinkError> {
    let connecting = timeout(CONNECT_TIMEOUT, transport.connect(address));
    let mut stream = connecting.await.map_err(|_| timed_out("connecting", CONNECT_TIMEOUT))??;
    let offering = timeout(HANDSHAKE_TIMEOUT, offer(&mut stream, me, to, kind));
    let agreed = offering.await.map_err(|_| timed_out("the handshake", HANDSHAKE_TIMEOUT))??;
    Ok((stream, agreed))
}

async fn offer(stream: &mut Stream, me: Identity, to: NodeId, kind: LinkKind) -> Result<Agreed, LinkError> {
    stream.write_all(&offer_of(me, to, kind).encode()).await?;
    let mut head = [0; ANSWER_BYTES];
    stream.read_exact(&mut head).await?;
    let mut reason = vec![0; Answer::reason_bytes(&head).map_err(refused)?];
    stream.read_exact(&mut reason).await?;
    agreed(Answer::decode(&head, &reason).map_err(refused)?)
}

/// The offer that `me` makes.
pub(super) fn offer_of(me: Identity, to: NodeId, kind: LinkKind) -> Offer {
    Offer { kind, versions: SUPPORTED, cluster: me.cluster, from: me.node, to, incarnation: me.incarnation }
}

/// What an answer means for the dialler.
pub(super) fn agreed(answer: Answer) -> Result<Agreed, LinkError> {
    match answer {
        Answer::Accepted { version, incarnation } if (SUPPORTED.min..=SUPPORTED.max).contains(&version) => {
            Ok(Agreed { version, incarnation })
        }
        Answer::Accepted { version, .. } => {
            Err(LinkError::Refused(format!("the other side chose protocol version {}, not one of ours", version.0)))
        }
        Answer::Refused { reason } => Err(LinkError::Refused(format!("the other side refused: {reason}"))),
    }
}

/// Reads a dialler's offer and judges it as `me`. A refusal is told to the dialler before this returns its error.
pub(super) async fn receive(
    stream: &mut Stream,
    me: Option<Identity>,
) -> Result<(Offer, ProtocolVersion, Identity), LinkError> {
    let mut bytes = [0; OFFER_BYTES];
    stream.read_exact(&mut bytes).await?;
    // What is not of this protocol gets no answer: it could not read one.
    let offer = Offer::decode(&bytes).map_err(refused)?;
    let verdict = match me {
        None => Err("this node does not belong to a cluster yet".to_owned()),
        Some(me) => offer.judge(me.cluster, me.node).map(|version| (version, me)),
    };
    match verdict {
        Ok((version, me)) => Ok((offer, version, me)),
        Err(reason) => {
            stream.write_all(&Answer::Refused { reason: reason.clone() }.encode()).await?;
            stream.shutdown().await?;
            Err(LinkError::Refused(reason))
        }
    }
}

/// Tells the dialler that the connection stands.
pub(super) async fn accept(stream: &mut Stream, me: Identity, version: ProtocolVersion) -> io::Result<()> {
    stream.write_all(&Answer::Accepted { version, incarnation: me.incarnation }.encode()).await
}

pub(super) fn refused(error: impl std::error::Error) -> LinkError {
    LinkError::Refused(error.to_string())
}

pub(super) fn timed_out(what: &str, after: Duration) -> LinkError {
    LinkError::Io(io::Error::new(io::ErrorKind::TimedOut, format!("{what} took longer than {after:?}")))
}
