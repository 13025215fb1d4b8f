package criu

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	protobuf "github.com/aperturerobotics/protobuf-go-lite"
	"golang.org/x/sys/unix"
)

// Fields of CRIU's images: images/fdinfo.proto, fsnotify.proto, fh.proto.
const (
	fileEntryInotify = 13
	inotifyWatch     = 5
	watchDevice      = 5
	watchHandle      = 7
	handleBytes      = 1
	handleType       = 2
	handleWords      = 3
	handlePath       = 4
	handleMount      = 5
)

// watch is an inotify watch of an image: a file system, and a file handle.
type watch struct {
	device uint64 // as the kernel has it: major << 20 | minor
	kind   int32
	handle []byte
}

// place is where a watched file is found at a restore: a path, in the mount
// namespace that has the mount.
type place struct {
	path  string
	mount uint64
}

// mendWatches undoes a mix-up of CRIU's dump. CRIU opens what is watched by its
// handle through any mount of that file system, and reads the path of what it
// has opened. Below the bind mount of another directory the file has no path,
// the kernel says "/", and CRIU believes it if the inode's number is that of the
// guest's root, on whatever file system. The root of an ext4 has number 2, as
// the second inode of each tmpfs has: then PID 1's watch of /run/systemd
// becomes a second one of "/", on which the restore fails. Such watches get the
// path that the file has in the mount namespace of pid, the guest's init.
func mendWatches(dir string, pid int) error {
	path := filepath.Join(dir, "files.img")
	root := fmt.Sprintf("/proc/%d/root", pid)
	var mounts []mountPoint
	mended, err := mendFile(path, func(w watch) (place, error) {
		if mounts == nil {
			var err error
			if mounts, err = mountsOf(pid); err != nil {
				return place{}, err
			}
		}
		return findWatched(root, mounts, w)
	})
	if err != nil || mended == nil {
		return err
	}
	return os.WriteFile(path, mended, 0o600)
}

// mendFile returns the image at path with all watches of "/" at the places that
// find returns, nil where nothing changes. find returns no path where "/" is
// right.
func mendFile(path string, find func(watch) (place, error)) ([]byte, error) {
	var failed error
	mended, err := editWatches(path, func(w watch, handle []byte) []byte {
		if string(bytesOf(handle, handlePath)) != "/" {
			return handle
		}
		at, err := find(w)
		failed = errors.Join(failed, err)
		if err != nil || at.path == "" {
			return handle
		}
		return withPlace(handle, at)
	})
	return mended, errors.Join(err, failed)
}

// editWatches returns the image at path with the handle of every inotify watch
// as edit returns it, nil where nothing changes.
func editWatches(path string, edit func(w watch, handle []byte) []byte) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	entries, err := readImage(path)
	if err != nil {
		return nil, err
	}
	editWatch := func(msg []byte) ([]byte, error) {
		device, _ := varint(msg, watchDevice)
		return within(msg, watchHandle, func(handle []byte) ([]byte, error) {
			return edit(parseHandle(device, handle), handle), nil
		})
	}
	out := bytes.Clone(data[:imageHeader])
	for _, e := range entries {
		edited, err := within(e, fileEntryInotify, func(inotify []byte) ([]byte, error) {
			return within(inotify, inotifyWatch, editWatch)
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = appendEntry(out, edited)
	}
	if bytes.Equal(out, data) {
		return nil, nil
	}
	return out, nil
}

func parseHandle(device uint64, msg []byte) watch {
	w := watch{device: device}
	kind, _ := varint(msg, handleType)
	w.kind = int32(kind)
	each(msg, func(tag uint64, value []byte) {
		if tag == handleWords<<3|wireVarint {
			word, _ := protobuf.ConsumeVarint(value)
			w.handle = binary.LittleEndian.AppendUint64(w.handle, word)
		}
	})
	if size, _ := varint(msg, handleBytes); size < uint64(len(w.handle)) {
		w.handle = w.handle[:size]
	}
	return w
}

// within returns a message with fn applied to every message in one of its
// fields.
func within(msg []byte, field uint64, fn func([]byte) ([]byte, error)) ([]byte, error) {
	var out []byte
	var failed error
	whole := each(msg, func(tag uint64, value []byte) {
		if tag == field<<3|wireBytes {
			_, n := protobuf.ConsumeVarint(value)
			inner, err := fn(value[n:])
			failed = errors.Join(failed, err)
			value = append(protobuf.AppendVarint(nil, uint64(len(inner))), inner...)
		}
		out = append(protobuf.AppendVarint(out, tag), value...)
	})
	if !whole {
		return nil, errImage
	}
	return out, failed
}

// bytesOf returns a field that is a string or message, nil where there is none.
func bytesOf(msg []byte, field uint64) (found []byte) {
	each(msg, func(tag uint64, value []byte) {
		if tag == field<<3|wireBytes {
			_, n := protobuf.ConsumeVarint(value)
			found = value[n:]
		}
	})
	return found
}

// mountPoint is a line of /proc/PID/mountinfo.
type mountPoint struct {
	id, device uint64
	path       string
}

func mountsOf(pid int) ([]mountPoint, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []mountPoint
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var m mountPoint
		var parent, major, minor uint64
		var root, path string
		if _, err := fmt.Sscanf(sc.Text(), "%d %d %d:%d %s %s", &m.id, &parent, &major, &minor, &root, &path); err != nil {
			return nil, fmt.Errorf("mountinfo of %d: %w", pid, err)
		}
		m.device, m.path = major<<20|minor, unescape(path)
		out = append(out, m)
	}
	return out, nil
}

// unescape undoes what the kernel does to blanks in mountinfo.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// findWatched returns where a file is in a mount namespace that root is the
// root directory of; no path where it is on the root's file system, so that "/"
// is right, or cannot be found: then it is as wrong as it was.
func findWatched(root string, mounts []mountPoint, w watch) (place, error) {
	for _, m := range mounts {
		if m.path == "/" && m.device == w.device {
			return place{}, nil
		}
	}
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return place{}, err
	}
	defer dir.Close()
	for _, m := range mounts {
		if m.device != w.device {
			continue
		}
		if path := pathThrough(dir, m.path, w); path != "" {
			return place{path, m.id}, nil
		}
	}
	return place{}, nil
}

// pathThrough opens a file by its handle through a mount and returns its path,
// "" where it has none there or the path leads to another file.
func pathThrough(root *os.File, mount string, w watch) string {
	at, err := openIn(root, mount, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return ""
	}
	defer unix.Close(at)
	fd, err := unix.OpenByHandleAt(at, unix.NewFileHandle(w.kind, w.handle), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil || !strings.HasPrefix(path, "/") || path == "/" {
		return ""
	}
	same, err := openIn(root, path, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return ""
	}
	defer unix.Close(same)
	var one, other unix.Stat_t
	if unix.Fstat(fd, &one) != nil || unix.Fstat(same, &other) != nil || one.Dev != other.Dev || one.Ino != other.Ino {
		return ""
	}
	return path
}

// openIn opens a path as the guest's own root would resolve it.
func openIn(root *os.File, path string, flags uint64) (int, error) {
	return unix.Openat2(int(root.Fd()), path, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}
