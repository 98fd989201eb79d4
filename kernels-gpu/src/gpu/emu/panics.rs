//! Panics in kernel code, which become faults: where they happened is known to the panic hook only.

use super::block;
use super::fault::Site;
use std::cell::RefCell;
use std::panic::{set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static LAST: RefCell<Option<(Site, String)>> = const { RefCell::new(None) };
}

/// Sees to it that panics in kernel code are kept instead of printed; all others go on to the hook
/// that was there before.
pub(super) fn keep_those_of_kernels() {
    static ONCE: Once = Once::new();
    if std::thread::panicking() {
        return; // a hook can't be set now
    }
    ONCE.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info| {
            if !block::inside_kernel() {
                return previous(info);
            }
            let site = info.location().map(Site::from);
            let what = info.payload_as_str().unwrap_or("with a value that is no text").to_owned();
            let _ = LAST.try_with(|last| *last.borrow_mut() = site.map(|site| (site, what)));
        }));
    });
}

/// Takes the last panic of this OS thread's kernel code.
pub(super) fn last() -> (Option<Site>, String) {
    match LAST.take() {
        Some((site, what)) => (Some(site), what),
        None => (None, "in kernel code".to_owned()), // another hook has replaced ours
    }
}
