package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInUse says that somebody else has the image.
var ErrInUse = errors.New("in use")

// Lock takes an image, a regular file or a block device, for the caller alone;
// ErrInUse where it has an owner already.
//
// The lock is flock(2)'s. It belongs to the open file, and a loop device keeps
// the file that it was given open: so an image stays locked until its device
// is gone, whoever took it and however he ended. Those who do not ask for the
// lock (mount -o loop) are found too, by their device.
func Lock(image *os.File) error { return take(image, unix.LOCK_EX) }

// Share takes an image for the caller and others who only read it; ErrInUse where
// somebody has it for himself alone.
func Share(image *os.File) error { return take(image, unix.LOCK_SH) }

func take(image *os.File, how int) error {
	err := unix.Flock(int(image.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrInUse
	}
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	st, err := image.Stat()
	if err != nil {
		return err
	}
	if st.Mode()&os.ModeDevice != 0 {
		return unclaimed(image.Name())
	}
	device, err := deviceOf(image)
	if err != nil {
		return err
	}
	if device != "" {
		return fmt.Errorf("%w: it is %s", ErrInUse, device)
	}
	return nil
}

// unclaimed asks the kernel whether a block device is mounted, or part of
// another one (open(2), O_EXCL without O_CREAT).
func unclaimed(device string) error {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: it is mounted, or part of another device", ErrInUse)
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// deviceOf returns the loop device whose contents are in image, "" where there
// is none. Names do not tell: a file has several, and may be renamed.
func deviceOf(image *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(image.Fd()), &st); err != nil {
		return "", err
	}
	backed, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	for _, path := range backed {
		name := "/dev/" + strings.Split(path, "/")[3]
		device, err := os.Open(name)
		if err != nil {
			continue // gone, or without a node: nobody mounts it
		}
		info, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
		device.Close()
		if err == nil && info.Device == st.Dev && info.Inode == st.Ino {
			return name, nil
		}
	}
	return "", nil
}

// attempts bounds the race for a free loop device: everybody who loses it asks
// for another.
const attempts = 64

// Attach makes image the contents of a loop device and returns that device. It
// clears itself with its last user (LO_FLAGS_AUTOCLEAR, loop(4)): when the
// returned file is closed, and what was mounted meanwhile is unmounted.
func Attach(image *os.File, readOnly bool) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("find a loop device: %w", err)
	}
	defer control.Close()
	for n := 1; ; n++ {
		device, err := attachOnce(control, image, readOnly)
		if err == nil || !errors.Is(err, unix.EBUSY) || n == attempts {
			return device, err
		}
	}
}

func attachOnce(control, image *os.File, readOnly bool) (*os.File, error) {
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("find a loop device: %w", err)
	}
	flags, mode := uint32(unix.LO_FLAGS_AUTOCLEAR), os.O_RDWR
	if readOnly {
		flags, mode = flags|unix.LO_FLAGS_READ_ONLY, os.O_RDONLY
	}
	device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), mode, 0)
	if err != nil {
		return nil, fmt.Errorf("open loop device: %w", err)
	}
	config := &unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: flags}}
	// What losetup(8) shows; cut off where it is longer.
	copy(config.Info.File_name[:len(config.Info.File_name)-1], image.Name())
	if err := unix.IoctlLoopConfigure(int(device.Fd()), config); err != nil {
		device.Close()
		return nil, fmt.Errorf("configure %s: %w", device.Name(), err)
	}
	return device, nil
}
