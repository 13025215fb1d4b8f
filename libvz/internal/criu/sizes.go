package criu

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	protobuf "github.com/aperturerobotics/protobuf-go-lite"
)

// Fields of images/regfile.proto.
const (
	regFileName = 6
	regFileSize = 8
)

// forgetSizes takes the sizes of files out of the images. CRIU compares the size
// of each file that a task has open, to tell that it is the same one; those that
// are made up anew at every look, such as lxcfs's, have another one each time.
// places are such files, and directories of them.
func forgetSizes(dir string, places []string) error {
	if len(places) == 0 {
		return nil
	}
	path := filepath.Join(dir, "files.img")
	entries, err := readImage(path)
	if err != nil {
		return err
	}
	changed := false
	for i, e := range entries {
		_, reg, err := parseFile(e)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if !isPlace(fileName(reg), places) {
			continue
		}
		entries[i] = rewrite(e, fileEntryReg, withLength(without(reg, regFileSize)))
		changed = true
	}
	if !changed {
		return nil
	}
	return writeEntries(path, entries)
}

func withLength(msg []byte) []byte {
	return append(protobuf.AppendVarint(nil, uint64(len(msg))), msg...)
}

// without returns a message that lacks a field.
func without(msg []byte, field uint64) []byte {
	var out []byte
	each(msg, func(tag uint64, v []byte) {
		if tag>>3 != field {
			out = append(protobuf.AppendVarint(out, tag), v...)
		}
	})
	return out
}

// fileName returns the path of a regular file's entry, from the guest's root.
func fileName(reg []byte) string {
	name := ""
	each(reg, func(tag uint64, value []byte) {
		if tag == regFileName<<3|wireBytes {
			if _, n := protobuf.ConsumeVarint(value); n > 0 { // its length
				name = string(value[n:])
			}
		}
	})
	return "/" + strings.TrimLeft(name, "/")
}

func isPlace(name string, places []string) bool {
	return slices.ContainsFunc(places, func(p string) bool {
		return name == p || strings.HasPrefix(name, p+"/")
	})
}

// writeEntries replaces the entries of an image. Until CRIU has our consent the
// images are nobody's last copy.
func writeEntries(path string, entries [][]byte) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	out := slices.Clone(data[:imageHeader])
	for _, e := range entries {
		out = appendEntry(out, e)
	}
	return os.WriteFile(path, out, 0o600)
}
