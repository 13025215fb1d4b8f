package cgroup

import (
	"fmt"
	"os"
	"strings"
)

// Frozen returns the cgroups below the cgroup2 directory path that were frozen
// there themselves (cgroup.freeze, not by one above), relative to path. The root
// is not among them: freezing that is the host's business.
func Frozen(path string) ([]string, error) {
	root, err := openRoot2(path)
	if err != nil {
		return nil, fmt.Errorf("list frozen cgroups: %w", err)
	}
	defer root.Close()
	var names []string
	err = walk(root, func(d *os.File, depth int) error {
		if depth == 0 {
			return nil
		}
		state, err := readFile(d, "cgroup.freeze")
		if err == nil && state == "1" {
			names = append(names, strings.TrimPrefix(d.Name(), root.Name()+"/"))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list frozen cgroups: %w", err)
	}
	return names, nil
}

// Freeze freezes cgroups as Frozen names them, and Thaw lets them go on. Those
// that were removed meanwhile are left out.
func Freeze(path string, names []string) error { return setFrozen(path, names, "1") }

// Thaw undoes Freeze.
func Thaw(path string, names []string) error { return setFrozen(path, names, "0") }

func setFrozen(path string, names []string, state string) error {
	root, err := openRoot2(path)
	if err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	defer root.Close()
	for _, name := range names {
		err := writeFile(root, name+"/cgroup.freeze", state)
		if err != nil && !gone(err) {
			return fmt.Errorf("freeze: %w", err)
		}
	}
	return nil
}
