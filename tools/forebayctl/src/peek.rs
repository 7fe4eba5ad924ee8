//! Reading messages without leasing them, page by page.

use forebay::proto::v1::PeekRequest;

use crate::args::PeekArgs;
use crate::client::{Server, answer};
use crate::errors::CtlError;
use crate::message::encode;
use crate::stdout;

const PAGE_MESSAGES_MAX: u32 = 1_000;

pub async fn peek(server: &Server, args: &PeekArgs) -> Result<(), CtlError> {
    let mut client = server.messages();
    let mut from_offset = args.from;
    let mut remaining = args.max;
    while remaining > 0 && !stdout::reader_is_gone() {
        let request = PeekRequest {
            queue: args.queue.as_str().to_owned(),
            from_offset,
            max_messages: u32::try_from(remaining).unwrap_or(u32::MAX).min(PAGE_MESSAGES_MAX),
            max_bytes: 0,
        };
        let page = answer(client.peek(request)).await?.messages;
        let Some(last) = page.last() else { break };
        from_offset = Some(last.offset + 1);
        remaining = remaining.saturating_sub(page.len() as u64);
        let text: Vec<u8> = page.iter().flat_map(|message| encode(args.format, message, None)).collect();
        stdout::print(&text).map_err(CtlError::Output)?;
    }
    Ok(())
}
