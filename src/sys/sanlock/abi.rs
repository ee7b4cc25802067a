//! The structs and numbers of sanlock's client library, as its documented headers have them. A test
//! compiles those headers and compares.

use std::ffi::{c_char, c_int, c_void};

pub const NAME: usize = 48;
pub const PATH: usize = 1024;

pub const RES_SHARED: u32 = 0x4;
/// Alignment and sector size, the same in resources and lockspaces.
pub const ALIGN_1M: u32 = 0x10;
pub const SECTOR_512: u32 = 0x100;
pub const SECTOR_4K: u32 = 0x200;
pub const RESTRICT_SIGTERM: u32 = 0x4;
pub const ACQUIRE_OWNER_NOWAIT: u32 = 0x8;
pub const REM_UNUSED: u32 = 0x2;
pub const HOST_MASK: u32 = 0xf;
pub const HOST_FREE: u32 = 2;
pub const HOST_LIVE: u32 = 3;
pub const HOST_FAIL: u32 = 4;
pub const HOST_DEAD: u32 = 5;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Disk {
    pub path: [u8; PATH],
    pub offset: u64,
    pub pad1: u32,
    pub pad2: u32,
}

/// A resource with the one disk that ours have; the library's own ends before `disk`.
#[repr(C)]
pub struct Resource {
    pub lockspace_name: [u8; NAME],
    pub name: [u8; NAME],
    pub lver: u64,
    pub data64: u64,
    pub data32: u32,
    pub unused: u32,
    pub flags: u32,
    pub num_disks: u32,
    pub disk: Disk,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Lockspace {
    pub name: [u8; NAME],
    pub host_id: u64,
    pub flags: u32,
    pub host_id_disk: Disk,
}

#[expect(clippy::struct_field_names, reason = "the header's names")]
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Host {
    pub host_id: u64,
    pub generation: u64,
    pub timestamp: u64,
    pub io_timeout: u32,
    pub flags: u32,
}

macro_rules! functions {
    ($($name:ident($($arg:ty),*);)*) => {
        /// The library's functions that we use; all answer 0 or a negative number, `register` a descriptor.
        pub struct Functions { $(pub $name: unsafe extern "C" fn($($arg),*) -> c_int,)* }

        impl Functions {
            /// # Safety
            /// `find` answers the address of the library's function of that name.
            pub unsafe fn load<E>(find: impl Fn(&str) -> Result<*mut c_void, E>) -> Result<Functions, E> {
                Ok(Functions { $($name: {
                    let at = find(concat!("sanlock_", stringify!($name)))?;
                    // SAFETY: the header declares this function with these arguments.
                    unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> c_int>(at) }
                },)* })
            }
        }
    };
}

functions! {
    register();
    restrict(c_int, u32);
    acquire(c_int, c_int, u32, c_int, *mut *mut Resource, *mut c_void);
    release(c_int, c_int, u32, c_int, *mut *mut Resource);
    add_lockspace_timeout(*mut Lockspace, u32, u32);
    rem_lockspace(*mut Lockspace, u32);
    get_lockspaces(*mut *mut Lockspace, *mut c_int, u32);
    get_hosts(*const c_char, u64, *mut *mut Host, *mut c_int, u32);
    write_lockspace(*mut Lockspace, c_int, u32, u32);
    write_resource(*mut Resource, c_int, c_int, u32);
    read_resource(*mut Resource, u32);
    read_resource_owners(*mut Resource, u32, *mut *mut Host, *mut c_int);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fork;
    use std::mem::{offset_of, size_of};

    /// Needs a compiler and libsanlock-dev: see packaging/need.
    #[test]
    fn our_structs_and_numbers_are_those_of_the_header() {
        let mut want: Vec<(String, u64)> = Vec::new();
        let mut put = |c: &str, ours: usize| want.push((c.to_owned(), ours as u64));
        put("sizeof(struct sanlk_disk)", size_of::<Disk>());
        put("sizeof(struct sanlk_resource)", offset_of!(Resource, disk));
        put("sizeof(struct sanlk_lockspace)", size_of::<Lockspace>());
        put("sizeof(struct sanlk_host)", size_of::<Host>());
        macro_rules! fields {
            ($t:ty, $c:literal, $($f:ident)*) => { $(
                put(concat!("offsetof(struct ", $c, ", ", stringify!($f), ")"), offset_of!($t, $f));
            )* };
        }
        fields!(Disk, "sanlk_disk", path offset pad1 pad2);
        fields!(Resource, "sanlk_resource", lockspace_name name lver data64 data32 unused flags num_disks);
        put("offsetof(struct sanlk_resource, disks)", offset_of!(Resource, disk));
        fields!(Lockspace, "sanlk_lockspace", name host_id flags host_id_disk);
        fields!(Host, "sanlk_host", host_id generation timestamp io_timeout flags);
        for (c, ours) in [
            ("NAME_LEN", NAME),
            ("PATH_LEN", PATH),
            ("RES_SHARED", RES_SHARED as usize),
            ("RES_ALIGN1M", ALIGN_1M as usize),
            ("RES_SECTOR512", SECTOR_512 as usize),
            ("RES_SECTOR4K", SECTOR_4K as usize),
            ("LSF_ALIGN1M", ALIGN_1M as usize),
            ("LSF_SECTOR512", SECTOR_512 as usize),
            ("LSF_SECTOR4K", SECTOR_4K as usize),
            ("RESTRICT_SIGTERM", RESTRICT_SIGTERM as usize),
            ("ACQUIRE_OWNER_NOWAIT", ACQUIRE_OWNER_NOWAIT as usize),
            ("REM_UNUSED", REM_UNUSED as usize),
            ("HOST_MASK", HOST_MASK as usize),
            ("HOST_FREE", HOST_FREE as usize),
            ("HOST_LIVE", HOST_LIVE as usize),
            ("HOST_FAIL", HOST_FAIL as usize),
            ("HOST_DEAD", HOST_DEAD as usize),
        ] {
            put(&format!("SANLK_{c}"), ours);
        }
        let mut source =
            "#include <stdio.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <sys/types.h>\n\
             #include <sanlock.h>\n#include <sanlock_resource.h>\n#include <sanlock_admin.h>\n\
             int main(void) {\n"
                .to_owned();
        for (c, _) in &want {
            source += &format!("printf(\"%llu\\n\", (unsigned long long)({c}));\n");
        }
        source += "return 0; }\n";
        let t = tempfile::tempdir().unwrap();
        let (c, program) = (t.path().join("abi.c"), t.path().join("abi"));
        std::fs::write(&c, source).unwrap();
        let built =
            fork::output(std::process::Command::new("gcc").arg(&c).arg("-o").arg(&program)).unwrap().status;
        assert!(built.success(), "gcc and libsanlock-dev are needed (packaging/need test)");
        let said = fork::output(&mut std::process::Command::new(&program)).unwrap().stdout;
        let theirs: Vec<u64> = String::from_utf8(said).unwrap().lines().map(|l| l.parse().unwrap()).collect();
        assert_eq!(theirs.len(), want.len());
        for ((c, ours), theirs) in want.into_iter().zip(theirs) {
            assert_eq!(ours, theirs, "{c}");
        }
    }
}
