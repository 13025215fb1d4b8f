package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// Fields of CRIU's images: images/fdinfo.proto, regfile.proto, mm.proto.
const (
	fileEntryID, fileEntryReg        = 2, 3
	regFileID, regFileFlags          = 1, 2
	mmExeFileID                      = 12
	imageHeader                      = 8 // two magic numbers
	openPath                  uint64 = unix.O_PATH
)

var errImage = errors.New("malformed image")

// mendExeLinks undoes a mix-up of CRIU's dump: where a task has the program of
// another open with O_PATH, CRIU saves one file for the descriptor and for the
// other task's /proc/PID/exe, and the restore fails on it with
// "PR_SET_MM_MAP failed with -9", since the kernel takes no O_PATH descriptor
// there. PID 1 of systemd 255 and newer holds systemd-executor so; what runs it
// are services that are being started and the (sd-pam) of user sessions. Such
// links get a file entry of their own.
func mendExeLinks(dir string) error {
	path := filepath.Join(dir, "files.img")
	files, err := readImage(path)
	if err != nil {
		return err
	}
	paths, last := map[uint64][]byte{}, uint64(0)
	for _, e := range files {
		id, reg, err := parseFile(e)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		last = max(last, id)
		if flags, ok := varint(reg, regFileFlags); ok && flags&openPath != 0 {
			paths[id] = e
		}
	}
	if len(paths) == 0 {
		return nil
	}
	mms, err := filepath.Glob(filepath.Join(dir, "mm-*.img"))
	if err != nil {
		return err
	}
	fresh, added := map[uint64]uint64{}, []byte(nil)
	for _, mm := range mms {
		entries, err := readImage(mm)
		if err != nil {
			return err
		}
		if len(entries) != 1 {
			return fmt.Errorf("%s: %w", mm, errImage)
		}
		id, ok := varint(entries[0], mmExeFileID)
		if !ok || paths[id] == nil {
			continue
		}
		if fresh[id] == 0 {
			last++
			fresh[id] = last
			added = appendEntry(added, readableCopy(paths[id], last))
		}
		if err := writeMM(mm, setVarint(entries[0], mmExeFileID, fresh[id])); err != nil {
			return err
		}
	}
	return appendFile(path, added)
}

// readableCopy is a file entry under another id, opened for reading.
func readableCopy(entry []byte, id uint64) []byte {
	_, reg, _ := parseFile(entry)
	reg = setVarint(setVarint(reg, regFileID, id), regFileFlags, unix.O_RDONLY)
	out := setVarint(entry, fileEntryID, id)
	return rewrite(out, fileEntryReg, protowire.AppendBytes(nil, reg))
}

func parseFile(entry []byte) (id uint64, reg []byte, err error) {
	id, ok := varint(entry, fileEntryID)
	if !ok {
		return 0, nil, errImage
	}
	each(entry, func(n protowire.Number, t protowire.Type, value []byte) {
		if n == fileEntryReg && t == protowire.BytesType {
			reg, _ = protowire.ConsumeBytes(value)
		}
	})
	return id, reg, nil
}

// each calls fn with every field of a message and its value as encoded, and
// returns false for what is no message.
func each(msg []byte, fn func(protowire.Number, protowire.Type, []byte)) bool {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return false
		}
		m := protowire.ConsumeFieldValue(num, typ, msg[n:])
		if m < 0 {
			return false
		}
		fn(num, typ, msg[n:n+m])
		msg = msg[n+m:]
	}
	return true
}

func varint(msg []byte, field protowire.Number) (value uint64, ok bool) {
	whole := each(msg, func(n protowire.Number, t protowire.Type, v []byte) {
		if n == field && t == protowire.VarintType {
			value, _ = protowire.ConsumeVarint(v)
			ok = true
		}
	})
	return value, ok && whole
}

func setVarint(msg []byte, field protowire.Number, value uint64) []byte {
	return rewrite(msg, field, protowire.AppendVarint(nil, value))
}

// rewrite returns a message with another value of one field that it has.
func rewrite(msg []byte, field protowire.Number, value []byte) []byte {
	var out []byte
	each(msg, func(n protowire.Number, t protowire.Type, v []byte) {
		if n == field {
			v = value
		}
		out = append(protowire.AppendTag(out, n, t), v...)
	})
	return out
}

// readImage returns the entries of an image: each is its size in 32 bits and
// a message.
func readImage(path string) ([][]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(data) < imageHeader {
		return nil, fmt.Errorf("%s: %w", path, errImage)
	}
	var out [][]byte
	for data = data[imageHeader:]; len(data) > 0; {
		if len(data) < 4 {
			return nil, fmt.Errorf("%s: %w", path, errImage)
		}
		size := int64(binary.LittleEndian.Uint32(data))
		if size > int64(len(data)-4) {
			return nil, fmt.Errorf("%s: %w", path, errImage)
		}
		out = append(out, data[4:4+size])
		data = data[4+size:]
	}
	return out, nil
}

func appendEntry(image, entry []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(image, uint32(len(entry))), entry...)
}

func appendFile(path string, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// writeMM replaces the one entry of an image.
func writeMM(path string, entry []byte) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, appendEntry(data[:imageHeader:imageHeader], entry), 0o600)
}
