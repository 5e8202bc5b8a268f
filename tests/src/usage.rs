//! The resources that a process uses, from `/proc`.

use std::fs::read_to_string;

/// Returns user and system time so far, in seconds.
pub fn cpu_s(pid: u32) -> f64 {
    let stat = read_to_string(format!("/proc/{pid}/stat")).expect("a process that runs");
    // After the program's name, which is in brackets: utime and stime are fields 14 and 15, in ticks of 10 ms.
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    let ticks =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("a number"));
    ticks.sum::<u64>() as f64 / 100.0
}

/// Returns its resident memory (VmRSS), in megabytes of 1024² bytes.
pub fn resident_mb(pid: u32) -> f64 {
    status_mb(pid, "VmRSS:")
}

/// Returns the most resident memory that it had (VmHWM), in the same unit.
pub fn peak_mb(pid: u32) -> f64 {
    status_mb(pid, "VmHWM:")
}

fn status_mb(pid: u32, field: &str) -> f64 {
    let status = read_to_string(format!("/proc/{pid}/status")).expect("a process that runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a process that has memory");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib / 1024.0
}

/// Returns user and system time so far, in seconds, of a process and of all its descendants that still run or were
/// waited for: a Postgres with its backends.
pub fn family_cpu_s(pid: u32) -> f64 {
    let times = |pid: &str| -> Option<(u32, [f64; 4])> {
        let stat = read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // ppid is field 4; utime, stime, cutime and cstime are 14 to 17, in ticks of 10 ms.
        let seconds = |field: usize| fields.get(field)?.parse::<f64>().ok().map(|ticks| ticks / 100.0);
        Some((fields.get(1)?.parse().ok()?, [seconds(11)?, seconds(12)?, seconds(13)?, seconds(14)?]))
    };
    let own = times(&pid.to_string()).map_or(0.0, |(_, times)| times.iter().sum());
    let processes = std::fs::read_dir("/proc").expect("a /proc");
    let children = processes.flatten().filter_map(|entry| times(entry.file_name().to_str()?));
    own + children.filter(|(parent, _)| *parent == pid).map(|(_, times)| times[0] + times[1]).sum::<f64>()
}

/// Returns the process on this machine that listens on a port of 127.0.0.1 or of all addresses; `None` if there is none
/// or we may not inspect it.
pub fn listener(port: u16) -> Option<u32> {
    const LISTENING: &str = "0A";
    let address = format!(":{port:04X}");
    let sockets = ["/proc/net/tcp", "/proc/net/tcp6"].iter().filter_map(|table| read_to_string(table).ok());
    let inodes: Vec<String> = sockets
        .flat_map(|table| {
            let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let ours = rows.filter(|row| row.len() > 9 && row[1].ends_with(&address) && row[3] == LISTENING);
            ours.map(|row| format!("socket:[{}]", row[9])).collect::<Vec<_>>()
        })
        .collect();
    let holds = |pid: &str| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| std::fs::read_link(file.path()).ok())
            .any(|to| to.to_str().is_some_and(|to| inodes.iter().any(|inode| inode == to)))
    };
    let pids = std::fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.parse::<u32>().ok()
    });
    // The oldest process that has it, because Postgres's backends inherit the socket of their parent.
    pids.filter(|pid| holds(&pid.to_string())).min()
}
