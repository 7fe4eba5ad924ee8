//! The tool against real servers, at a tiny scale. Figures are checked for being there and for what they must be, and
//! exit codes; how fast anything was is not.

mod cli;
mod curves;
mod limits;
mod loads;
#[cfg(feature = "peers")]
mod peers;
mod support;
