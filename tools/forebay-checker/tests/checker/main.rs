//! Tests of the checker: made-up histories, those of a correct queue, and its command.

mod cli;
mod format;
mod leases;
mod model;
mod rules;
mod story;
