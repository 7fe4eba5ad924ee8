//! A hundred kills at random moments, under load, with small segments that roll over, checkpoints and queues that come and go or are
//! purged. `cargo xtask kill-loop` does the same for longer.

use forebay_testkit::torture::kill_loop::KillLoop;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_kills_lose_nothing_and_repeat_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (data_dir, history) = (dir.path().join("data"), dir.path().join("history"));
    let kill_loop = KillLoop { cycles: 100, seed: 20_261_122, data_dir, history };
    let outcome = kill_loop.run(|_| {}).await.unwrap();
    let figures = outcome.figures;
    let first: Vec<_> = outcome.violations.iter().take(10).collect();
    if !first.is_empty() {
        let kept = dir.keep();
        panic!("{figures}, seed {}, kept in {}: {first:#?}", kill_loop.seed, kept.display());
    }
    assert_eq!((figures.cycles, figures.restarts), (100, 100));
    // A run in which nothing happened proves nothing.
    assert!(figures.acknowledged > 1_000 && figures.redeliveries > 10 && figures.unknown > 10, "{figures}");
    assert!(figures.purges > 20, "{figures}");
    assert!(figures.segments_gone > 50 && figures.queues_deleted > 20, "{figures}");
    assert!(figures.acks > figures.acknowledged / 2 && figures.early_kills > 0, "{figures}");
}
