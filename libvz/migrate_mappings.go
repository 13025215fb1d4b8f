package libvz

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// sharedMappings returns the files of the root file system, relative to it, that
// the container's tasks have mapped so that writes to memory are writes to the
// file. The tasks are stopped.
func (c *Container) sharedMappings(root string, init int) ([]string, error) {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	pids, err := c.lc.Processes()
	if err != nil {
		return nil, err
	}
	if !slices.Contains(pids, init) {
		pids = append(pids, init)
	}
	var found []string
	for _, pid := range pids {
		f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		names, err := parseSharedMappings(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("read mappings of process %d: %w", pid, err)
		}
		found = append(found, names...)
	}
	slices.Sort(found)
	return slices.DeleteFunc(slices.Compact(found), func(name string) bool {
		st, err := dir.Lstat(name) // what lies on a tmpfs is not there
		return err != nil || !st.Mode().IsRegular()
	}), nil
}

// maxMaps bounds what is read of one task's mappings.
const maxMaps = 64 << 20

// parseSharedMappings reads a /proc/PID/maps (proc(5)): the files of mappings
// that are shared and writable. A name of another file system is not found in
// the root, or is another file there: sending that one too does no harm.
func parseSharedMappings(r io.Reader) ([]string, error) {
	var names []string
	in := bufio.NewScanner(io.LimitReader(r, maxMaps))
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		// ADDRESS PERMS OFFSET DEV INODE      NAME
		f := strings.SplitN(in.Text(), " ", 6)
		const perms, last = 1, 5
		if len(f) <= last || f[perms] != "rw-s" && f[perms] != "rwxs" {
			continue
		}
		name := strings.TrimLeft(f[last], " ")
		rel, absolute := strings.CutPrefix(name, "/")
		if !absolute || strings.HasSuffix(name, " (deleted)") || rel == "" {
			continue
		}
		// Newlines are written as \012.
		names = append(names, strings.ReplaceAll(rel, `\012`, "\n"))
	}
	return names, in.Err()
}
