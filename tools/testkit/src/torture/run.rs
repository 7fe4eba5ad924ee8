//! A crew over many lives of a server, and the last one, in which everything is drained and judged.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_checker::Violation;
use forebay_checker::format::Event;

use super::churn::{self, Fates};
use super::figures::Figures;
use super::history::History;
use super::{Crew, consumers, create_queues, drain_all};
use crate::{Server, ServerOptions};

/// How often it is asked whether a life is over.
const POLL: Duration = Duration::from_millis(2);

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub figures: Figures,
    pub violations: Vec<Violation>,
}

/// How a life ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// None: it was killed.
    pub status: Option<ExitStatus>,
    pub stderr: String,
}

/// Options of the servers of a run: small log files, so that the log rolls over often, and of two pieces, so that some
/// are used before they are filled with zeroes.
pub fn options() -> ServerOptions {
    ServerOptions { config: "segment_bytes = 524288\n".to_owned(), ..ServerOptions::default() }
}

/// See the module's header.
#[derive(Debug)]
pub struct Run {
    pub history: Arc<History>,
    pub figures: Figures,
    crew: Crew,
    lives: u64,
}

impl Run {
    /// Begins on a server without queues.
    pub async fn begin(history: Arc<History>, seed: u64, server: &Server) -> Result<Self, String> {
        create_queues(&mut server.clients()).await.map_err(|status| status.to_string())?;
        let mut crew = Crew::new(history.clone(), seed);
        crew.start_all();
        crew.start_churn();
        Ok(Self { history, figures: Figures::default(), crew, lives: 0 })
    }

    /// One life: the crew works until it is `over`, the server ends by itself or the time is up; then it is killed.
    pub async fn live(&mut self, server: Server, at_most: Duration, over: impl FnMut() -> bool) -> Ended {
        let address = server.grpc.clone();
        self.live_at(server, &address, at_most, over).await
    }

    /// The same, but the crew is told another address.
    pub async fn live_at(
        &mut self,
        mut server: Server,
        address: &str,
        at_most: Duration,
        mut over: impl FnMut() -> bool,
    ) -> Ended {
        self.figures.restarts += u64::from(self.lives > 0);
        self.figures.recovery_ms_max = self.figures.recovery_ms_max.max(server.recovery_ms);
        self.crew.up(self.lives, address);
        let end = Instant::now() + at_most;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || over() || !server.is_running() {
                break;
            }
            tokio::time::sleep(left.min(POLL)).await;
        }
        self.history.record(Event::Killed { life: self.lives });
        let running = server.is_running();
        let (status, stderr) = tokio::task::block_in_place(|| {
            if running {
                return (None, server.kill());
            }
            let (status, stderr) = server.wait();
            (Some(status), stderr)
        });
        self.crew.down();
        self.lives += 1;
        self.figures.cycles += 1;
        Ended { status, stderr }
    }

    /// Sends the crew home; the history stays.
    pub async fn dismiss(self) {
        self.crew.end().await;
    }

    /// The last life, and the judgement. The history is what the crew did, whatever it is found to be.
    pub async fn finish(mut self, server: Server) -> Outcome {
        let fates = self.crew.fates.clone();
        self.crew.end().await;
        self.figures.restarts += 1;
        self.figures.recovery_ms_max = self.figures.recovery_ms_max.max(server.recovery_ms);
        self.figures.queues_deleted = fates.gone();
        last_life(&self.history, server, self.lives, Some(&fates)).await;
        judge(&self.history, self.figures)
    }
}

/// Drains every queue and ends the server; what is wrong goes into the history. Queues that came and went are compared
/// with what became of them, if that is known, and deleted.
pub async fn last_life(history: &Arc<History>, server: Server, life: u64, fates: Option<&Fates>) {
    let mut clients = server.clients();
    match churn::clear(&mut clients).await {
        Ok(there) => {
            if let Some(fates) = fates {
                fates.verify(history, &there);
            }
        }
        Err(status) => history.unexpected(format!("the queues cannot be listed and deleted: {status}")),
    }
    if let Err(status) = drain_all(history, &mut clients, life).await {
        consumers::drain_failed(history, &status);
    }
    drop(clients);
    let (status, stderr) = tokio::task::block_in_place(|| server.terminate());
    complain(history, &stderr);
    if !status.success() {
        history.unexpected(format!("the server ended with {status}:\n{stderr}"));
    }
}

/// Judges a history that ended with all queues drained. The one place where that is done.
pub fn judge(history: &History, mut figures: Figures) -> Outcome {
    match history.judge() {
        Ok(report) => {
            figures.count(&report);
            Outcome { figures, violations: report.violations }
        }
        Err(unreadable) => panic!("a history of our own cannot be read: {unreadable}"),
    }
}

/// A server whose machine has no fault has no reason for errors and panics.
pub fn complain(history: &History, stderr: &str) {
    let wrong = |line: &&str| line.contains("ERROR") || line.contains("panicked");
    for line in stderr.lines().filter(wrong).filter(|line| !history.tolerates_line(line)) {
        history.unexpected(format!("the server wrote: {line}"));
    }
}
