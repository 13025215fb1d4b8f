package criu

import (
	"fmt"
	"os"
	"path/filepath"

	protobuf "github.com/aperturerobotics/protobuf-go-lite"
)

// nameWatches gives the watches of files on the guest's root, which CRIU saves
// by handles alone, the paths that these files have. A handle means nothing to
// another file system, and a clone's root is one: an overlay over the root of
// its origin. CRIU goes by the path where there is one. A watch of a file that
// has no path keeps its handle.
func nameWatches(dir string, pid int) error {
	mounts, err := mountsOf(pid)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "files.img")
	named, err := nameFile(path, fmt.Sprintf("/proc/%d/root", pid), mounts)
	if err != nil || named == nil {
		return err
	}
	return os.WriteFile(path, named, 0o600)
}

func nameFile(path, root string, mounts []mountPoint) ([]byte, error) {
	var at mountPoint
	for _, m := range mounts {
		if m.path == "/" {
			at = m // the last one covers the others
		}
	}
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return editWatches(path, func(w watch, handle []byte) []byte {
		if at.path == "" || w.device != at.device || bytesOf(handle, handlePath) != nil {
			return handle
		}
		found := pathThrough(dir, "/", w)
		if found == "" {
			return handle
		}
		return withPlace(handle, place{found, at.id})
	})
}

// withPlace returns a handle with another path and mount, in place of any that
// it has.
func withPlace(handle []byte, at place) []byte {
	var out []byte
	each(handle, func(tag uint64, value []byte) {
		if field := tag >> 3; field != handlePath && field != handleMount {
			out = append(protobuf.AppendVarint(out, tag), value...)
		}
	})
	out = protobuf.AppendVarint(out, handlePath<<3|wireBytes)
	out = append(protobuf.AppendVarint(out, uint64(len(at.path))), at.path...)
	out = protobuf.AppendVarint(out, handleMount<<3|wireVarint)
	return protobuf.AppendVarint(out, at.mount)
}
