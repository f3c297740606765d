//! Negotiation: one option in, replies out, until the client goes on to transmission or leaves.
//!
//! State: what the client asked for so far. Pure; the caller reads exactly the bytes asked for, so that none of the
//! transmission phase are taken by mistake. It deliberately knows no TLS: `NBD_OPT_STARTTLS` is unsupported until the
//! transport offers it.

use bytes::BufMut;

use crate::codec::{self, Fields, OptionHeader, ProtocolError, info, option, reply, transmission};
use crate::export::{Agreed, Export, ExportDirectory, Lookup};
use crate::{OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX, OPTIONS_MAX, PAYLOAD_BYTES_MAX, STRING_BYTES_MAX};

/// Smallest request unit, in bytes: the device reads, modifies and writes by itself.
const BLOCK_BYTES_MIN: u32 = 1;
/// Request unit that costs no read-modify-write, in bytes.
const BLOCK_BYTES_PREFERRED: u32 = 4096;
/// Bytes of zeros after the reply to `NBD_OPT_EXPORT_NAME`, unless both sides agreed to leave them out.
const EXPORT_NAME_ZEROES: usize = 124;

/// What follows an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send the replies and read the next option.
    Continue,
    /// Send the replies; the next byte from the client belongs to the transmission phase.
    Transmit(Agreed),
    /// Send the replies and close: the client said `NBD_OPT_ABORT`.
    Abort,
    /// Close: `NBD_OPT_EXPORT_NAME` asked for an export that is not served here, and that option has no error reply.
    Refuse {
        /// Why, for the log.
        message: String,
    },
}

/// The negotiation of one connection.
#[derive(Debug, Default)]
pub struct Handshake {
    fixed_newstyle: bool,
    no_zeroes: bool,
    structured_replies: bool,
    /// Export for which `base:allocation` was selected last.
    base_allocation_of: Option<String>,
    options: u32,
}

impl Handshake {
    /// The server's first 18 bytes.
    pub fn greeting() -> Vec<u8> {
        let mut out = Vec::with_capacity(18);
        out.put_u64(codec::MAGIC_SERVER);
        out.put_u64(codec::MAGIC_OPTION);
        out.put_u16(codec::FLAG_FIXED_NEWSTYLE | codec::FLAG_NO_ZEROES);
        out
    }

    /// Takes the client's 4 bytes of flags. Flags that were not offered are an error ("Newstyle negotiation").
    pub fn on_client_flags(&mut self, flags: u32) -> Result<(), ProtocolError> {
        let fixed = u32::from(codec::FLAG_FIXED_NEWSTYLE);
        let no_zeroes = u32::from(codec::FLAG_NO_ZEROES);
        if flags & !(fixed | no_zeroes) != 0 {
            return Err(ProtocolError::ClientFlags(flags));
        }
        self.fixed_newstyle = flags & fixed != 0;
        self.no_zeroes = flags & no_zeroes != 0;
        Ok(())
    }

    /// Takes an option header. `length` of the result is at most [`OPTION_SKIP_BYTES_MAX`]; above
    /// [`OPTION_BYTES_MAX`] the caller skips the payload and calls [`Handshake::on_long_option`].
    pub fn on_option_header(&mut self, header: OptionHeader) -> Result<(), ProtocolError> {
        let OptionHeader { option, length } = header;
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(ProtocolError::OptionCount);
        }
        if !self.fixed_newstyle && option != option::EXPORT_NAME {
            return Err(ProtocolError::NotFixedNewstyle(option));
        }
        let limit = if option == option::EXPORT_NAME { OPTION_BYTES_MAX } else { OPTION_SKIP_BYTES_MAX };
        if length > limit {
            return Err(ProtocolError::OptionLength { option, length });
        }
        Ok(())
    }

    /// Answers an option whose payload was too long to keep and has been skipped.
    pub fn on_long_option(&mut self, option: u32, out: &mut Vec<u8>) {
        put_error(out, option, reply::ERR_TOO_BIG, "the option is too long");
    }

    /// Answers one option with its whole payload; replies are appended to `out`.
    pub fn on_option(
        &mut self,
        option: u32,
        payload: &[u8],
        directory: &dyn ExportDirectory,
        out: &mut Vec<u8>,
    ) -> Result<Step, ProtocolError> {
        match option {
            option::EXPORT_NAME => return self.on_export_name(payload, directory, out),
            option::ABORT => {
                put_ack(out, option);
                return Ok(Step::Abort);
            }
            option::INFO | option::GO => return Ok(self.on_info(option, payload, directory, out)),
            option::LIST => on_list(payload, directory, out),
            option::STRUCTURED_REPLY if !payload.is_empty() => {
                put_error(out, option, reply::ERR_INVALID, "NBD_OPT_STRUCTURED_REPLY takes no data");
            }
            option::STRUCTURED_REPLY => {
                self.structured_replies = true;
                put_ack(out, option);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.on_meta_context(option, payload, directory, out);
            }
            option::STARTTLS => put_error(out, option, reply::ERR_UNSUP, "TLS is not offered on this listener"),
            option::EXTENDED_HEADERS => put_error(out, option, reply::ERR_UNSUP, "extended headers are not supported"),
            _ => put_error(out, option, reply::ERR_UNSUP, "unknown option"),
        }
        Ok(Step::Continue)
    }

    fn on_export_name(
        &mut self,
        payload: &[u8],
        directory: &dyn ExportDirectory,
        out: &mut Vec<u8>,
    ) -> Result<Step, ProtocolError> {
        let name = std::str::from_utf8(payload).map_err(|_| ProtocolError::ExportName)?;
        if name.len() > STRING_BYTES_MAX {
            return Err(ProtocolError::ExportName);
        }
        let export = match directory.lookup(name) {
            Lookup::Serve(export) => export,
            Lookup::NotHere { message } | Lookup::NotNow { message } => return Ok(Step::Refuse { message }),
        };
        out.put_u64(export.size_bytes);
        out.put_u16(self.transmission_flags());
        if !self.no_zeroes {
            out.put_bytes(0, EXPORT_NAME_ZEROES);
        }
        Ok(Step::Transmit(self.agree(name, export)))
    }

    fn on_info(&self, option: u32, payload: &[u8], directory: &dyn ExportDirectory, out: &mut Vec<u8>) -> Step {
        let Some((name, requested)) = parse_info(payload) else {
            put_error(out, option, reply::ERR_INVALID, "malformed information request");
            return Step::Continue;
        };
        let Some(export) = look_up(option, name, directory, out) else { return Step::Continue };
        let mut body = Vec::with_capacity(16);
        body.put_u16(info::EXPORT);
        body.put_u64(export.size_bytes);
        body.put_u16(self.transmission_flags());
        codec::put_option_reply(out, option, reply::INFO, &body);
        // Sent unasked too, which the protocol allows: it tells every client the payload limit.
        body.clear();
        body.put_u16(info::BLOCK_SIZE);
        body.put_u32(BLOCK_BYTES_MIN);
        body.put_u32(BLOCK_BYTES_PREFERRED);
        body.put_u32(PAYLOAD_BYTES_MAX);
        codec::put_option_reply(out, option, reply::INFO, &body);
        for (kind, text) in [(info::NAME, &export.name), (info::DESCRIPTION, &export.description)] {
            if requested.contains(kind) && !text.is_empty() {
                body.clear();
                body.put_u16(kind);
                body.put_slice(clip(text).as_bytes());
                codec::put_option_reply(out, option, reply::INFO, &body);
            }
        }
        put_ack(out, option);
        if option == option::GO { Step::Transmit(self.agree(name, export)) } else { Step::Continue }
    }

    fn on_meta_context(&mut self, option: u32, payload: &[u8], directory: &dyn ExportDirectory, out: &mut Vec<u8>) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            // "If it fails, no contexts are selected": also those of an earlier, successful try.
            self.base_allocation_of = None;
            if !self.structured_replies {
                put_error(out, option, reply::ERR_INVALID, "structured replies must be negotiated first");
                return;
            }
        }
        let Some((name, matched)) = parse_meta_queries(payload, set) else {
            put_error(out, option, reply::ERR_INVALID, "malformed metadata context queries");
            return;
        };
        if look_up(option, name, directory, out).is_none() {
            return;
        }
        if matched {
            let mut body = Vec::with_capacity(4 + codec::BASE_ALLOCATION.len());
            // The identifier means nothing in answer to LIST and is sent as zero.
            body.put_u32(if set { codec::BASE_ALLOCATION_ID } else { 0 });
            body.put_slice(codec::BASE_ALLOCATION.as_bytes());
            codec::put_option_reply(out, option, reply::META_CONTEXT, &body);
        }
        if set && matched {
            self.base_allocation_of = Some(name.to_owned());
        }
        put_ack(out, option);
    }

    fn agree(&self, requested: &str, export: Export) -> Agreed {
        Agreed {
            export,
            structured_replies: self.structured_replies,
            // A selection holds only for the very export it named ("Metadata querying").
            base_allocation: self.base_allocation_of.as_deref() == Some(requested),
        }
    }

    fn transmission_flags(&self) -> u16 {
        // CAN_MULTI_CONN is honest: connections share one device, whose flush covers every write that has returned.
        // FAST_ZERO is not offered: the device gives no promise of speed.
        let base = transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::SEND_TRIM
            | transmission::SEND_WRITE_ZEROES
            | transmission::CAN_MULTI_CONN;
        if self.structured_replies { base | transmission::SEND_DF } else { base }
    }
}

/// The information types a client asked for.
struct InfoRequests<'a>(&'a [u8]);

impl InfoRequests<'_> {
    fn contains(&self, kind: u16) -> bool {
        self.0.chunks_exact(2).any(|pair| pair == kind.to_be_bytes())
    }
}

fn parse_info(payload: &[u8]) -> Option<(&str, InfoRequests<'_>)> {
    let mut fields = Fields(payload);
    let name = fields.string()?;
    let count = usize::from(fields.u16()?);
    let requested = fields.bytes(count * 2)?;
    fields.0.is_empty().then_some((name, InfoRequests(requested)))
}

/// The export's name, and whether `base:allocation` is among what the queries ask for. Listing takes a bare namespace
/// (or no query at all) as "all of it"; selecting takes the full name only.
fn parse_meta_queries(payload: &[u8], set: bool) -> Option<(&str, bool)> {
    let mut fields = Fields(payload);
    let name = fields.string()?;
    let count = fields.u32()?;
    let mut matched = count == 0 && !set;
    // A false count ends at the end of the payload, so the loop is bounded by it.
    for _ in 0..count {
        let query = fields.string()?;
        matched |= query == codec::BASE_ALLOCATION || (!set && query == "base:");
    }
    fields.0.is_empty().then_some((name, matched))
}

fn on_list(payload: &[u8], directory: &dyn ExportDirectory, out: &mut Vec<u8>) {
    if !payload.is_empty() {
        put_error(out, option::LIST, reply::ERR_INVALID, "NBD_OPT_LIST takes no data");
        return;
    }
    let mut body = Vec::new();
    for export in directory.list() {
        let name = clip(&export.name);
        body.clear();
        body.put_u32(name.len() as u32);
        body.put_slice(name.as_bytes());
        body.put_slice(clip(&export.description).as_bytes());
        codec::put_option_reply(out, option::LIST, reply::SERVER, &body);
    }
    put_ack(out, option::LIST);
}

fn look_up(option: u32, name: &str, directory: &dyn ExportDirectory, out: &mut Vec<u8>) -> Option<Export> {
    match directory.lookup(name) {
        Lookup::Serve(export) => return Some(export),
        Lookup::NotHere { message } => put_error(out, option, reply::ERR_UNKNOWN, &message),
        Lookup::NotNow { message } => put_error(out, option, reply::ERR_SHUTDOWN, &message),
    }
    None
}

fn put_ack(out: &mut Vec<u8>, option: u32) {
    codec::put_option_reply(out, option, reply::ACK, &[]);
}

fn put_error(out: &mut Vec<u8>, option: u32, error: u32, message: &str) {
    codec::put_option_reply(out, option, error, clip(message).as_bytes());
}

/// Cuts `text` to the protocol's string limit, between characters.
fn clip(text: &str) -> &str {
    let mut end = text.len().min(STRING_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
