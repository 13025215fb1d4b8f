package guest

import "io/fs"

// File is one file for the guest's /run.
type File struct {
	Path    string      // relative to /run, clean, no ".." in it
	Content string      // the whole file
	Mode    fs.FileMode // permission bits only
}

// DropIns returns what [Install] puts into the guest's /run before its init
// starts; nil for an init that reads no settings from there. The comments in the
// files tell an operator who finds them what they are for.
//
// systemd merges the drop-ins of a unit in the order of their file names,
// whichever directory they are in (systemd.unit(5)), so 00-vzrun.conf comes after
// the unit file and before everything that an operator or a package adds.
func DropIns(i Init) []File {
	if i != Systemd {
		return nil
	}
	return []File{
		{Path: "systemd/system/service.d/00-vzrun.conf", Mode: 0o644, Content: serviceDropIn},
		{Path: "systemd/system.conf.d/00-vzrun.conf", Mode: 0o644, Content: managerDropIn + phpEnvironment},
		{Path: "systemd/vzrun-php/00-vzrun.ini", Mode: 0o644, Content: phpSettings},
		{Path: "systemd/user.conf.d/00-vzrun.conf", Mode: 0o644, Content: managerDropIn},
		{Path: "systemd/system/user@.service.d/00-vzrun.conf", Mode: 0o644, Content: userDropIn},
		{Path: "systemd/system/systemd-resolved.service.d/00-vzrun.conf", Mode: 0o644, Content: tmpDropIn},
		{Path: "systemd/system/systemd-journald.service.d/00-vzrun.conf", Mode: 0o644, Content: credentialsDropIn},
		{Path: "systemd/system/systemd-networkd.service.d/00-vzrun.conf", Mode: 0o644, Content: credentialsDropIn},
		{Path: "systemd/system/console-getty.service.d/00-vzrun.conf", Mode: 0o644, Content: credentialsDropIn},
		{Path: "systemd/system/container-getty@.service.d/00-vzrun.conf", Mode: 0o644, Content: credentialsDropIn},
	}
}

const serviceDropIn = `# Written by vzrun at each start; see vzrun's documentation on checkpoints.
# A drop-in of your own (systemctl edit UNIT) overrides these lines. The
# system can then not be checkpointed while that unit runs.
[Service]
# makes a UTS namespace inside the system's own, which CRIU cannot save
ProtectHostname=no
# makes an IPC namespace, likewise
PrivateIPC=no
# makes a user namespace, likewise
PrivateUsers=no
`

const tmpDropIn = `# Written by vzrun at each start; see vzrun's documentation on checkpoints.
[Service]
# PrivateTmp=disconnected binds two directories of a tmpfs whose root is mounted
# nowhere, which CRIU cannot save; yes uses directories in /tmp and /var/tmp
PrivateTmp=yes
`

// credentialsDropIn is for the services of systemd that run on and import
// credentials, of which a guest gets none.
const credentialsDropIn = `# Written by vzrun at each start; see vzrun's documentation on checkpoints.
[Service]
# systemd 262 mounts a ramfs for them, empty or not, which CRIU cannot save
ImportCredential=
`

const userDropIn = `# Written by vzrun at each start; see vzrun's documentation on checkpoints.
[Service]
# the unit says skip, so the default is not asked; a user's manager then spins
# after a restore, as its trigger is gone
MemoryPressureWatch=off
`

const managerDropIn = `# Written by vzrun at each start; see vzrun's documentation on checkpoints.
[Manager]
# CRIU restores an open memory.pressure file without its trigger, and the
# process that waits for it then spins
DefaultMemoryPressureWatch=off
# likewise, since systemd 262; older ones say once that they do not know these
DefaultCPUPressureWatch=off
# see above
DefaultIOPressureWatch=off
`

const phpEnvironment = `# PHP reads its own directory of settings, and then this one
DefaultEnvironment=PHP_INI_SCAN_DIR=:/run/systemd/vzrun-php
`

const phpSettings = `; Written by vzrun at each start; see vzrun's documentation on checkpoints.
; Else the memory of the just-in-time compiler lies before PHP's own program. It is
; shared and not writable, and CRIU works in what it finds first
opcache.preferred_memory_model=posix
`
