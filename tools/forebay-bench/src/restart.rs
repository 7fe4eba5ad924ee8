//! `restart`: how soon a full server is ready after SIGKILL.

use std::process::Command;

use forebay_testkit::subscription;
use serde_json::json;

use crate::Failure;
use crate::args::RestartArgs;
use crate::fill::{batch_of, fill};
use crate::limit::Limit;
use crate::progress::Progress;
use crate::report::{Figures, Report};
use crate::site::{Site, check, create_queues, queue_names, waiting};
use crate::take::delay_all;

/// Most milliseconds with a warm page cache, and with a cold one.
const WARM_MS_MAX: f64 = 200.0;
const COLD_MS_MAX: f64 = 1_000.0;

pub async fn run(args: &RestartArgs) -> Result<Report, Failure> {
    let mut site = Site::started(&args.server)?;
    let names = queue_names(1);
    let clients = site.server().clients();
    create_queues(&clients, &names).await?;
    fill(&clients, &names, args.messages, args.size, batch_of(args.size)).await?;
    check("messages that wait", waiting(&clients, &names).await?, args.messages)?;
    if args.delayed {
        delay_all(&clients, &subscription(&names[0]), args.messages).await?;
    }
    drop(clients);
    let progress = Progress::start("restarting", args.judged.runs);
    let mut runs = Vec::new();
    for _ in 0..args.judged.runs {
        runs.push(one(args, &mut site, &names).await?);
        progress.add(1);
    }
    let settings =
        json!({ "messages": args.messages, "size": args.size, "delayed": args.delayed, "cold": args.cold });
    let most = if args.cold { COLD_MS_MAX } else { WARM_MS_MAX };
    let limits = args.judged.limits([Limit::Most("ready_ms", most)]);
    Ok(Report { command: "restart", settings, runs, limits })
}

async fn one(args: &RestartArgs, site: &mut Site, names: &[String]) -> Result<Figures, Failure> {
    site.kill();
    if args.cold {
        drop_page_cache()?;
    }
    let ready = site.start()?;
    let server = site.server();
    check("messages that the server says it recovered", server.recovered_messages, args.messages)?;
    check("messages that wait", waiting(&server.clients(), names).await?, args.messages)?;
    Ok(vec![("ready_ms", ready.as_secs_f64() * 1e3), ("recovery_ms", server.recovery_ms as f64)])
}

/// Writes what is dirty and forgets what is clean, of all files.
pub fn drop_page_cache() -> Result<(), Failure> {
    if !Command::new("sync").status()?.success() {
        return Err("sync failed".into());
    }
    let path = "/proc/sys/vm/drop_caches";
    std::fs::write(path, "3").map_err(|error| format!("{path} cannot be written (root may): {error}").into())
}
