//! System calls that no engine makes once its library is loaded, and that a graph which has taken over its process would
//! want: other files, programs, processes, networks. They fail as if there were no permission.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

/// What is denied. `openat2` and `io_uring` are other ways to the same.
const DENIED: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_memfd_create,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_truncate,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_prlimit64,
    libc::SYS_setpriority,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_ioprio_set,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    libc::SYS_inotify_init1,
    libc::SYS_fanotify_init,
    libc::SYS_io_uring_setup,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setresuid,
];

/// The same calls by the names that only older architectures have.
#[cfg(target_arch = "x86_64")]
const OLD: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_mknod,
    libc::SYS_lchown,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_mkdir,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_inotify_init,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[libc::c_long] = &[];

/// Calls of the second ABI of x86-64, in which the same have other numbers, begin here.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

/// Denies them to every thread of this process, for good.
pub(super) fn apply() -> io::Result<()> {
    let Ok(architecture) = TargetArch::try_from(std::env::consts::ARCH) else {
        // No filter is written for this architecture.
        return Ok(());
    };
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().chain(OLD).map(|call| (*call, Vec::new())).collect();
    denied.extend(in_part().map_err(io::Error::other)?);
    // Threads are made by `clone`, which can be looked into, where this one is not there.
    let pointers = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    for (calls, errno) in [(denied, libc::EACCES), (pointers, libc::ENOSYS)] {
        let errno = SeccompAction::Errno(errno as u32);
        let filter = SeccompFilter::new(calls, SeccompAction::Allow, errno, architecture);
        let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(io::Error::other)?;
        apply_filter_all_threads(&program).map_err(io::Error::other)?;
    }
    #[cfg(target_arch = "x86_64")]
    apply_filter_all_threads(&without_x32()).map_err(io::Error::other)?;
    Ok(())
}

/// Calls that are denied for some of their arguments: a signal for another process than this one, which may abort; another
/// process, which would outlive this one and its limits; to live on when the parent is gone.
fn in_part() -> Result<[(i64, Vec<SeccompRule>); 3], seccompiler::BackendError> {
    let first = |operator, value| {
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)?;
        Ok(vec![SeccompRule::new(vec![condition])?])
    };
    let thread = libc::CLONE_THREAD as u64;
    Ok([
        (libc::SYS_tgkill, first(SeccompCmpOp::Ne, std::process::id().into())?),
        (libc::SYS_clone, first(SeccompCmpOp::MaskedEq(thread), 0)?),
        (libc::SYS_prctl, first(SeccompCmpOp::Eq, libc::PR_SET_PDEATHSIG as u64)?),
    ])
}

/// Looks at the number of a call alone.
#[cfg(target_arch = "x86_64")]
fn without_x32() -> BpfProgram {
    let step = |code: u32, jt, jf, k| seccompiler::sock_filter { code: code as u16, jt, jf, k };
    vec![
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EACCES as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const FILTERED: &str = "WINDROSE_TEST_FILTERED";

    /// What a call came to: 0, or its error.
    #[expect(unsafe_code, reason = "calls that nobody has a safe function for")]
    fn call(number: libc::c_long, arguments: [libc::c_long; 3]) -> i32 {
        let [a, b, c] = arguments;
        // SAFETY: no argument of any call below is a pointer that is read or written.
        match unsafe { libc::syscall(number, a, b, c) } {
            -1 => io::Error::last_os_error().raw_os_error().unwrap_or(0),
            _ => 0,
        }
    }

    /// In a process of its own: there is no way back.
    #[test]
    fn a_process_keeps_to_itself() {
        if std::env::var_os(FILTERED).is_none() {
            let this = std::env::current_exe().expect("a program");
            let test = "backend::child::filter::tests::a_process_keeps_to_itself";
            let done = Command::new(this).args(["--exact", test]).env(FILTERED, "1").output().expect("it starts");
            let said = String::from_utf8_lossy(&done.stdout);
            assert!(done.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let own = i64::from(std::process::id());
        #[expect(unsafe_code, reason = "there is no safe way to ask")]
        // SAFETY: it takes nothing and cannot fail.
        let parent = i64::from(unsafe { libc::getppid() });
        process_is_free(parent, own);
        crate::process::enter().expect("no new privileges");
        apply().expect("a filter");
        let denied = [
            ("a signal for another", libc::SYS_tgkill, [parent, parent, 0]),
            ("another's priority", libc::SYS_sched_setaffinity, [parent, 0, 0]),
            ("a process", libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0]),
            ("to outlive the parent", libc::SYS_prctl, [libc::PR_SET_PDEATHSIG.into(), 0, 0]),
            ("a session", libc::SYS_setsid, [0; 3]),
            ("a file", libc::SYS_openat, [libc::AT_FDCWD.into(), 0, 0]),
        ];
        for (what, number, arguments) in denied {
            assert_eq!(call(number, arguments), libc::EACCES, "{what}");
        }
        #[cfg(target_arch = "x86_64")]
        assert_eq!(call(i64::from(X32) | libc::SYS_getpid, [0; 3]), libc::EACCES, "another ABI");
        assert_eq!(call(libc::SYS_clone3, [0; 3]), libc::ENOSYS);
        assert_eq!(call(libc::SYS_tgkill, [own, own, 0]), 0, "a process may abort");
        assert_eq!(std::thread::spawn(|| 7).join().expect("threads are made"), 7);
    }

    /// What is denied afterwards is possible before.
    fn process_is_free(parent: i64, own: i64) {
        assert_eq!(call(libc::SYS_tgkill, [parent, parent, 0]), 0);
        assert_eq!(call(libc::SYS_tgkill, [own, own, 0]), 0);
    }
}
