//! Tests of the whole server: real processes, real clients, one binary.

mod bad_input;
mod client;
mod commits;
mod data_dir;
mod delivery;
mod kills;
mod layers;
mod lifecycle;
mod publish_streams;
mod removal;
mod retries;
mod smoke;
mod streams;
mod support;
