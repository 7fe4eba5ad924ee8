//! The command against a real server, as its users run it.

#[path = "cli/admin.rs"]
mod admin;
#[path = "cli/consume.rs"]
mod consume;
#[path = "cli/publish.rs"]
mod publish;
#[path = "cli/support.rs"]
mod support;
#[path = "cli/tail.rs"]
mod tail;
