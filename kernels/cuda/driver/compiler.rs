//! NVRTC, the compiler that comes with the CUDA toolkit, for devices that no compiled kernels are shipped for.

use std::ffi::CString;
use std::ptr;

use cudarc::nvrtc::result::NvrtcError;
use cudarc::nvrtc::sys;

/// A program of the compiler, which goes with it.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `nvrtcCreateProgram`, and nobody else has it.
        let _ = unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// A source with the headers it includes, by name, to machine code, with these options and for that compute capability.
///
/// # Errors
///
/// If there is no compiler, or what it says of the source.
pub(crate) fn compile(
    source: &str,
    headers: &[(&str, &str)],
    options: &str,
    (major, minor): (u32, u32),
) -> Result<Vec<u8>, String> {
    // SAFETY: this opens the compiler's library and closes it.
    if !unsafe { sys::is_culib_present() } {
        return Err("the CUDA toolkit's compiler (libnvrtc) is not there".to_owned());
    }
    let c = |text: &str| CString::new(text).map_err(|_| "a zero in a source".to_owned());
    let failed = |what: &'static str| move |error: NvrtcError| format!("{what}: {:?}", error.0);
    let source = c(source)?;
    let names = headers.iter().map(|(name, _)| c(name)).collect::<Result<Vec<_>, _>>()?;
    let texts = headers.iter().map(|(_, text)| c(text)).collect::<Result<Vec<_>, _>>()?;
    let pointers = |strings: &[CString]| strings.iter().map(|string| string.as_ptr()).collect::<Vec<_>>();
    let mut program = Program(ptr::null_mut());
    // SAFETY: the strings end with a zero and are copied by the call; there are as many names as texts.
    unsafe {
        sys::nvrtcCreateProgram(
            &mut program.0,
            source.as_ptr(),
            c"kernel.cu".as_ptr(),
            headers.len() as i32,
            pointers(&texts).as_ptr(),
            pointers(&names).as_ptr(),
        )
        .result()
    }
    .map_err(failed("the compiler does not start"))?;
    // With what only this one has.
    let own = if (major, minor) == (9, 0) { "a" } else { "" };
    let architecture = c(&format!("--gpu-architecture=sm_{major}{minor}{own}"))?;
    let options = options.split(' ').map(c).chain([Ok(architecture)]).collect::<Result<Vec<_>, _>>()?;
    let options = pointers(&options);
    // SAFETY: the program lives, and so do the options.
    let done = unsafe { sys::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr()).result() };
    if done.is_err() {
        let mut bytes = 0;
        // SAFETY: the program lives, and `bytes` is a place for the answer.
        unsafe { sys::nvrtcGetProgramLogSize(program.0, &mut bytes).result() }.map_err(failed("it has no log"))?;
        let mut log = vec![0u8; bytes];
        // SAFETY: there is room for as many bytes as it has.
        unsafe { sys::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast()).result() }
            .map_err(failed("it has no log"))?;
        let log = String::from_utf8_lossy(&log);
        return Err(log.trim_matches(['\0', '\n']).to_owned());
    }
    let mut bytes = 0;
    // SAFETY: as above.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &mut bytes).result() }.map_err(failed("it has no code"))?;
    let mut code = vec![0u8; bytes];
    // SAFETY: as above.
    unsafe { sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()).result() }.map_err(failed("it has no code"))?;
    Ok(code)
}
