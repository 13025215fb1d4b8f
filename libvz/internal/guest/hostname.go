package guest

import (
	"errors"

	"golang.org/x/sys/unix"
)

// KeepHostname makes the name that a guest was created with the one that its init
// finds, by writing it to /etc/hostname on the guest's disk: scripts of inits set
// the name from there (hostname(5)). systemd is told on its command line instead,
// and an empty name leaves the choice to the guest; nothing is written then.
// pid, uid and gid are those of [Install].
//
// A file that is mounted there, or a rootfs that is read-only, has its own way to
// say the name: that is no error.
func KeepHostname(i Init, name string, pid, uid, gid int) error {
	if i == Systemd || name == "" {
		return nil
	}
	root, err := openRoot(pid)
	if err != nil {
		return err
	}
	defer root.Close()
	etc, err := openIn(root, "/etc", unix.O_RDONLY|unix.O_DIRECTORY)
	if absent(err) {
		return nil // nothing reads it
	}
	if err != nil {
		return err
	}
	defer etc.Close()
	err = asFsUser(uid, gid, func() error {
		return install(etc, File{Path: "hostname", Mode: 0o644, Content: name + "\n"})
	})
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}
