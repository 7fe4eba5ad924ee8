//! Single messages by their ids.

use forebay::proto::v1::{CancelMessageRequest, GetMessageRequest};
use serde_json::json;

use crate::args::MessageCommand;
use crate::client::{Server, answer};
use crate::errors::CtlError;
use crate::message::encode;
use crate::{output, stdout};

pub async fn message(server: &Server, command: MessageCommand) -> Result<(), CtlError> {
    let mut client = server.messages();
    match command {
        MessageCommand::Get { queue, id, format } => {
            let request = GetMessageRequest { queue: queue.as_str().to_owned(), message_id: id };
            let found = answer(client.get_message(request)).await?;
            stdout::print(&encode(format, &found, None)).map_err(CtlError::Output)
        }
        MessageCommand::Cancel { queue, id, output } => {
            let request = CancelMessageRequest {
                queue: queue.as_str().to_owned(),
                message_id: id.clone(),
                ..CancelMessageRequest::default()
            };
            answer(client.cancel_message(request)).await?;
            output::object(output.format, &json!({ "cancelled": id }))
        }
    }
}
