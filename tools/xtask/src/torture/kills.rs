//! kill -9 at random moments, also of a start: the loop of `cargo xtask kill-loop`, a few cycles of it.

use forebay_testkit::torture::kill_loop::KillLoop;

use super::{Tally, Turn};

pub async fn run(turn: &Turn) -> Result<Tally, String> {
    let kill_loop = KillLoop {
        cycles: turn.cycles,
        seed: turn.seed,
        data_dir: turn.dir.join("data"),
        history: turn.dir.join("kills.history"),
    };
    let outcome = kill_loop.run(|line| turn.progress.set_message(line)).await?;
    let mut tally = Tally { cycles: turn.cycles, hits: turn.cycles, ..Tally::default() };
    tally.add("kills", &outcome);
    Ok(tally)
}
