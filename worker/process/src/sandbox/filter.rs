//! The system calls that no program needs for its work, and the sockets that lead past Landlock.

use std::collections::BTreeMap;
use std::mem::offset_of;

use nix::libc::{self, c_int, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};

use super::Network;

/// Calls that read other processes, change what the whole machine shares, or lead past the other rules.
const REFUSED: &[c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
];

/// The bits of a socket's type that are not flags.
const TYPE: u64 = 0xf;

pub fn of(network: Network) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_socket, sockets(network)?);
    if network != Network::All {
        // They connect without `connect`.
        for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
            rules.insert(
                call,
                vec![rule([has(flags, libc::MSG_FASTOPEN as u64, libc::MSG_FASTOPEN as u64)])?],
            );
        }
    }
    let architecture = std::env::consts::ARCH.try_into()?;
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter: BpfProgram =
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)?.try_into()?;
    Ok(if cfg!(target_arch = "x86_64") {
        other_numbers().into_iter().chain(filter).collect()
    } else {
        filter
    })
}

/// Refuses the second set of numbers that this architecture has for its system calls (x32): each is one of the first with
/// this bit, and would be none of those in the rules. The jumps behind it are relative, so it can stand before any program.
fn other_numbers() -> [sock_filter; 3] {
    const X32: u32 = 0x4000_0000;
    let step = |code: u32, jf, k| sock_filter { code: code as u16, jt: 0, jf, k };
    [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, offset_of!(libc::seccomp_data, nr) as u32),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 1, X32),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
    ]
}

/// The sockets that are refused: `socket(family, type, protocol)`.
fn sockets(network: Network) -> Result<Vec<SeccompRule>, BackendError> {
    let [family, kind, protocol] = [0, 1, 2];
    let internet = [libc::AF_INET, libc::AF_INET6];
    let mut rules = vec![rule([is(family, libc::AF_PACKET)])?];
    for of in internet {
        rules.push(rule([is(family, of), has(kind, TYPE, libc::SOCK_RAW as u64)])?);
    }
    if network == Network::All {
        return Ok(rules);
    }
    // Not Unix sockets: by their paths they lead to daemons, such as Docker's or a database's, and Landlock bounds their
    // abstract names alone. A pair of them is made by another call. Routing sockets say which addresses this machine has.
    rules.push(rule([libc::AF_NETLINK].into_iter().chain(internet).map(|of| is_not(family, of)))?);
    for of in internet {
        if network == Network::None {
            rules.push(rule([is(family, of)])?);
            continue;
        }
        for datagrams in [libc::SOCK_DGRAM, libc::SOCK_RDM, libc::SOCK_SEQPACKET, libc::SOCK_DCCP] {
            rules.push(rule([is(family, of), has(kind, TYPE, datagrams as u64)])?);
        }
        rules.push(rule([is(family, of), is_not(protocol, 0), is_not(protocol, libc::IPPROTO_TCP)])?);
    }
    Ok(rules)
}

type Condition = Result<SeccompCondition, BackendError>;

/// A call for which all of these hold.
fn rule(conditions: impl IntoIterator<Item = Condition>) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)
}

fn is(argument: u8, value: c_int) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value as u64)
}

fn is_not(argument: u8, value: c_int) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value as u64)
}

fn has(argument: u8, mask: u64, bits: u64) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), bits)
}
