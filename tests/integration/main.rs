//! Tests of the whole server: real processes, real clients, one binary.

mod bad_input;
mod client;
mod commits;
mod control;
mod data_dir;
mod delivery;
mod dump;
mod fixtures;
mod fsck;
mod kills;
mod layers;
mod lifecycle;
mod packed;
mod publish_streams;
mod rebuild;
mod removal;
mod retries;
mod smoke;
mod stalled;
mod streams;
mod support;
mod tails;
