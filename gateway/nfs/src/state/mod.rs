//! What a service knows of its clients: pure. Requests go in, answers and records come out; the records join the transaction
//! of the operation that they tell of (`filesystem::state_ring`), and from them a takeover builds all of it anew.
//!
//! An operation of the filesystem may run several times before it counts. So changes made here count only when the operation
//! has joined a transaction: [`table::Table`] keeps what was before, until then.

pub mod back_channel;
pub mod client;
pub mod clients;
pub mod counters;
pub mod create_session;
pub mod exchange_id;
pub mod grace;
pub mod lease;
pub mod record;
pub mod sequence;
pub mod session;
pub mod slot;
pub mod table;
pub mod v3_replies;
