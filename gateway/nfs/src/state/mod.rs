//! What a service knows of its clients: pure. Requests go in, answers and records come out; the records join the transaction
//! of the operation that they tell of (`filesystem::state_ring`), and from them a takeover builds all of it anew.
//!
//! An operation of the filesystem may run several times before it counts. So changes made here count only when the operation
//! has joined a transaction: [`table::Table`] keeps what was before, until then.

pub mod back_channel;
pub mod bounds;
pub mod callback_session;
pub mod callbacks;
pub mod client;
pub mod clients;
pub mod counters;
pub mod create_session;
pub mod delegation;
pub mod exchange_id;
pub mod files;
pub mod foundation;
pub mod grace;
pub mod holder;
pub mod hosts;
pub mod index;
pub mod lease;
pub mod lock;
pub mod nlm;
pub mod open;
pub mod ranges;
pub mod record;
pub mod recorded;
pub mod refusal;
pub mod sequence;
pub mod service;
pub mod session;
pub mod share;
pub mod slot;
pub mod stateids;
pub mod table;
pub mod v3_replies;
pub mod waiters;
