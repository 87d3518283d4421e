//! What the board is made of: atomics, in memory that processes share. The only part
//! of it that does not check what it is given.
//!
//! Under `cfg(loom)` the atomics are loom's, there is room for two of everything, and
//! the memory is the heap's: `tests/interleavings` has loom try the same code in
//! every order that the memory model allows.

#![allow(unsafe_code, reason = "memory that other processes write is beyond the language")]

use std::io;

#[cfg(not(loom))]
pub(super) use mapped::{clear, map, pause};
#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU8, AtomicU32, AtomicU64};
#[cfg(not(loom))]
pub(super) use std::thread::yield_now;

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicI32, AtomicI64, AtomicU8, AtomicU32, AtomicU64};
#[cfg(loom)]
pub(super) use loom::thread::{yield_now, yield_now as pause};
#[cfg(loom)]
pub(super) use modelled::{clear, map};

/// How many of something the board holds.
pub(super) const fn room(count: usize) -> usize {
    if cfg!(loom) { 2 } else { count }
}

/// # Safety
/// The type is made of atomics alone: any bytes are a value of it, zeros among them,
/// and anybody may write it at any time.
pub(super) unsafe trait Shared: 'static {}

#[cfg(not(loom))]
mod mapped {
    use std::ptr::NonNull;

    use super::{Shared, io};

    /// Zeros, shared with later forks of this process alone, and never unmapped. They
    /// are reserved when they are first written, so that what is unused costs nothing.
    pub fn map<T: Shared>() -> io::Result<&'static T> {
        // SAFETY: an anonymous mapping at an address of the kernel's choosing
        // touches no memory of ours.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let page = NonNull::new(page).filter(|page| page.as_ptr() != libc::MAP_FAILED);
        let page = page.ok_or_else(io::Error::last_os_error)?.cast::<T>();
        const { assert!(align_of::<T>() <= 4096, "a page is aligned to no more") };
        // SAFETY: the mapping is page-aligned, of this size, zeroed and never unmapped;
        // `Shared` promises that this is a value whatever anybody writes.
        Ok(unsafe { page.as_ref() })
    }

    /// Makes it zeros again, and gives the memory back to the system.
    pub fn clear<T: Shared>(mapped: &'static T) -> io::Result<()> {
        let page = std::ptr::from_ref(mapped).cast_mut().cast();
        // SAFETY: `map` alone makes these: the whole of a mapping of this size that is
        // never unmapped. Its pages read as zeros after.
        match unsafe { libc::madvise(page, size_of::<T>(), libc::MADV_REMOVE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// A millisecond's sleep: of nginx's event loop, or of a thread about to publish.
    pub fn pause() {
        // SAFETY: plain system call.
        unsafe { libc::usleep(1000) };
    }
}

#[cfg(loom)]
mod modelled {
    use super::{Shared, io};

    pub fn map<T: Shared + Default>() -> io::Result<&'static T> {
        Ok(Box::leak(Box::default()))
    }

    /// The end of it: a model makes a board for each order that it tries.
    pub fn clear<T: Shared>(mapped: &'static T) -> io::Result<()> {
        // SAFETY: `map` alone makes these, and the model has joined all who know it.
        drop(unsafe { Box::from_raw(std::ptr::from_ref(mapped).cast_mut()) });
        Ok(())
    }
}
