package criu

import (
	"fmt"
	"os"
	"path/filepath"

	protobuf "github.com/aperturerobotics/protobuf-go-lite"
)

// Fields of images/userns.proto.
const (
	usernsUIDs, usernsGIDs              = 1, 2
	extentInner, extentOuter, extentLen = 1, 2, 3
)

// IDMap is one range of ids of a user namespace: Size ids from Inner in the
// guest are those from Outer on the host.
type IDMap struct{ Inner, Outer, Size uint32 }

// MapIDs returns the images of the guest's user namespaces with other ids of
// the host, by file name. uids and gids must map the ids that the images map,
// in the same ranges; all else in the images holds the guest's own ids. The
// files in dir stay as they are.
func MapIDs(dir string, uids, gids []IDMap) (map[string][]byte, error) {
	images, err := filepath.Glob(filepath.Join(dir, "userns-*.img"))
	if err != nil {
		return nil, err
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("%d images of user namespaces in %s, one is known", len(images), dir)
	}
	out := map[string][]byte{}
	for _, image := range images {
		data, err := os.ReadFile(image)
		if err != nil {
			return nil, err
		}
		entries, err := readImage(image)
		if err != nil {
			return nil, err
		}
		if len(entries) != 1 {
			return nil, fmt.Errorf("%s: %w", image, errImage)
		}
		entry, err := mapField(entries[0], usernsUIDs, uids)
		if err == nil {
			entry, err = mapField(entry, usernsGIDs, gids)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", image, err)
		}
		out[filepath.Base(image)] = appendEntry(data[:imageHeader:imageHeader], entry)
	}
	return out, nil
}

// mapField replaces the host's side of each extent in one field.
func mapField(entry []byte, field uint64, ids []IDMap) ([]byte, error) {
	left := len(ids)
	out, err := within(entry, field, func(extent []byte) ([]byte, error) {
		inner, _ := varint(extent, extentInner)
		size, ok := varint(extent, extentLen)
		for _, m := range ids {
			if ok && uint64(m.Inner) == inner && uint64(m.Size) == size {
				left--
				fresh := protobuf.AppendVarint(nil, extentInner<<3|wireVarint)
				fresh = protobuf.AppendVarint(fresh, inner)
				fresh = protobuf.AppendVarint(fresh, extentOuter<<3|wireVarint)
				fresh = protobuf.AppendVarint(fresh, uint64(m.Outer))
				fresh = protobuf.AppendVarint(fresh, extentLen<<3|wireVarint)
				return protobuf.AppendVarint(fresh, size), nil
			}
		}
		return nil, fmt.Errorf("%d ids from %d of the guest are mapped, which its configuration does not", size, inner)
	})
	if err == nil && left != 0 {
		err = fmt.Errorf("%d ranges of ids are not mapped", left)
	}
	return out, err
}
