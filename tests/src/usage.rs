//! What a process uses, by `/proc`.

use std::fs::read_to_string;

/// User and system time so far, in seconds.
pub fn cpu_s(pid: u32) -> f64 {
    let stat = read_to_string(format!("/proc/{pid}/stat")).expect("a process that runs");
    // Behind the program's name, which is in brackets: utime and stime are fields 14 and 15, in ticks of 10 ms.
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    let ticks =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("a number"));
    ticks.sum::<u64>() as f64 / 100.0
}

/// Memory that it holds (VmRSS), in megabytes of 1024² bytes.
pub fn resident_mb(pid: u32) -> f64 {
    let status = read_to_string(format!("/proc/{pid}/status")).expect("a process that runs");
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process that has memory");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib / 1024.0
}
