//! What the C library of Debian 12 (wasi-libc of 2022) lacks. Only the compiler from Debian's packages needs it.
//!
//! Its threads: there are none in a guest, so creating one fails. And its start: it leaves the call of constructors to the
//! linker, which then wraps every export in one, `cabi_realloc` too; a constructor that looks for preopened folders would
//! run while the host is writing into the module, where no import may be called.
#![feature(no_core, lang_items, intrinsics, rustc_attrs)]
#![no_core]
#![crate_type = "lib"]
#![allow(internal_features)]

#[lang = "pointee_sized"]
trait PointeeSized {}
#[lang = "meta_sized"]
trait MetaSized: PointeeSized {}
#[lang = "sized"]
trait Sized: MetaSized {}
#[lang = "copy"]
trait Copy {}
impl Copy for i32 {}

/// `ENOTSUP` of WASI: a thread cannot be made here.
const NOT_SUPPORTED: i32 = 58;

#[unsafe(no_mangle)]
extern "C" fn pthread_attr_init(_attributes: i32) -> i32 {
    0
}

#[unsafe(no_mangle)]
extern "C" fn pthread_attr_setstacksize(_attributes: i32, _bytes: i32) -> i32 {
    0
}

#[unsafe(no_mangle)]
extern "C" fn pthread_attr_destroy(_attributes: i32) -> i32 {
    0
}

#[unsafe(no_mangle)]
extern "C" fn pthread_create(_thread: i32, _attributes: i32, _start: i32, _argument: i32) -> i32 {
    NOT_SUPPORTED
}

#[unsafe(no_mangle)]
extern "C" fn pthread_detach(_thread: i32) -> i32 {
    NOT_SUPPORTED
}

#[unsafe(no_mangle)]
extern "C" fn pthread_join(_thread: i32, _result: i32) -> i32 {
    NOT_SUPPORTED
}

unsafe extern "C" {
    fn __wasm_call_ctors();
    fn __main_void() -> i32;
    fn __wasi_proc_exit(status: i32) -> !;
}

/// Runs once, when the component is instantiated. That it names the constructors keeps the linker from wrapping exports.
#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    // SAFETY: the linker makes this function; it may be called once.
    unsafe { __wasm_call_ctors() }
}

/// Runs a program, whose constructors have run. A library, which has no `main`, is linked without it.
#[unsafe(no_mangle)]
extern "C" fn _start() {
    // SAFETY: `main` as rustc makes it, and the C library's exit.
    unsafe {
        match __main_void() {
            0 => {}
            status => __wasi_proc_exit(status),
        }
    }
}
