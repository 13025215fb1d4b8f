package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	protobuf "github.com/aperturerobotics/protobuf-go-lite"
	"golang.org/x/sys/unix"
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
	return rewrite(out, fileEntryReg, append(protobuf.AppendVarint(nil, uint64(len(reg))), reg...))
}

func parseFile(entry []byte) (id uint64, reg []byte, err error) {
	id, ok := varint(entry, fileEntryID)
	if !ok {
		return 0, nil, errImage
	}
	each(entry, func(tag uint64, value []byte) {
		if tag != fileEntryReg<<3|wireBytes {
			return
		}
		if _, n := protobuf.ConsumeVarint(value); n > 0 { // its length
			reg = value[n:]
		}
	})
	return id, reg, nil
}

// Wire types of fields, the low three bits of their tags (Protocol Buffers,
// "Encoding").
const (
	wireVarint = 0
	wireBytes  = 2
)

// each calls fn with the tag of every field of a message and its value as
// encoded, and returns false for what is no message.
func each(msg []byte, fn func(tag uint64, value []byte)) bool {
	for len(msg) > 0 {
		tag, n := protobuf.ConsumeVarint(msg)
		size, err := protobuf.Skip(msg)
		if n <= 0 || err != nil || size < n || size > len(msg) {
			return false
		}
		fn(tag, msg[n:size])
		msg = msg[size:]
	}
	return true
}

func varint(msg []byte, field uint64) (value uint64, ok bool) {
	whole := each(msg, func(tag uint64, v []byte) {
		if tag == field<<3|wireVarint {
			value, _ = protobuf.ConsumeVarint(v)
			ok = true
		}
	})
	return value, ok && whole
}

func setVarint(msg []byte, field, value uint64) []byte {
	return rewrite(msg, field, protobuf.AppendVarint(nil, value))
}

// rewrite returns a message with another value of one field that it has.
func rewrite(msg []byte, field uint64, value []byte) []byte {
	var out []byte
	each(msg, func(tag uint64, v []byte) {
		if tag>>3 == field {
			v = value
		}
		out = append(protobuf.AppendVarint(out, tag), v...)
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
