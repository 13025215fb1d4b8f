package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

// processChanges is how exec's process differs from the container's own.
type processChanges struct {
	file       string // the whole process instead of changes
	args       []string
	env, caps  []string
	cwd, user  string
	gids       []string
	apparmor   string
	label      string
	cgroups    []string
	terminal   bool
	noNewPrivs *bool
}

func processFlags(c *cli.Context) (*processChanges, error) {
	p := &processChanges{
		file: c.String("process"), cwd: c.String("cwd"), user: c.String("user"),
		env: c.StringSlice("env"), caps: c.StringSlice("cap"), gids: c.StringSlice("additional-gids"),
		cgroups: c.StringSlice("cgroup"), apparmor: c.String("apparmor"), label: c.String("process-label"), terminal: c.Bool("tty"),
	}
	if p.file != "" {
		if err := checkArgs(c, 1, 1); err != nil {
			return nil, err
		}
	} else {
		if err := checkArgs(c, 2, unlimited); err != nil {
			return nil, err
		}
		p.args = c.Args().Tail()
	}
	if c.IsSet("no-new-privs") {
		wanted := c.Bool("no-new-privs")
		p.noNewPrivs = &wanted
	}
	return p, nil
}

// process returns the process to run in a container.
func (p *processChanges) process(ct *libvz.Container) (*specs.Process, error) {
	if p.file != "" {
		return readProcess(p.file)
	}
	state, err := ct.State()
	if err != nil {
		return nil, err
	}
	spec, err := libvz.LoadSpec(state.Bundle)
	if err != nil {
		return nil, err
	}
	return spec.Process, p.apply(spec.Process)
}

func readProcess(path string) (*specs.Process, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var process specs.Process
	if err := json.Unmarshal(data, &process); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &process, checkProcess(path, &process)
}

func checkProcess(path string, process *specs.Process) error {
	switch {
	case len(process.Args) == 0:
		return fmt.Errorf("%s: args must not be empty", path)
	case !strings.HasPrefix(process.Cwd, "/"):
		return fmt.Errorf("%s: cwd %q must be an absolute path", path, process.Cwd)
	}
	return nil
}

func (p *processChanges) apply(process *specs.Process) error {
	process.Args = p.args
	process.Env = append(process.Env, p.env...)
	process.Terminal = p.terminal
	// A size in config.json is that of init's terminal.
	process.ConsoleSize = nil
	if p.cwd != "" {
		process.Cwd = p.cwd
	}
	if p.apparmor != "" {
		process.ApparmorProfile = p.apparmor
	}
	if p.label != "" {
		process.SelinuxLabel = p.label
	}
	if p.noNewPrivs != nil {
		process.NoNewPrivileges = *p.noNewPrivs
	}
	p.addCapabilities(process)
	return p.changeUser(&process.User)
}

// addCapabilities raises ambient capabilities only where the container uses
// inheritable ones, without which the kernel refuses them.
func (p *processChanges) addCapabilities(process *specs.Process) {
	if len(p.caps) == 0 {
		return
	}
	if process.Capabilities == nil {
		process.Capabilities = &specs.LinuxCapabilities{}
	}
	sets := process.Capabilities
	sets.Bounding = append(sets.Bounding, p.caps...)
	sets.Effective = append(sets.Effective, p.caps...)
	sets.Permitted = append(sets.Permitted, p.caps...)
	if sets.Inheritable != nil {
		sets.Ambient = append(sets.Ambient, p.caps...)
	}
}

func (p *processChanges) changeUser(user *specs.User) error {
	if p.user != "" {
		uid, gid, err := parseUser(p.user)
		if err != nil {
			return err
		}
		user.UID = uid
		if gid != nil {
			user.GID = *gid
		}
	}
	for _, text := range p.gids {
		gid, err := parseID("additional-gids", text)
		if err != nil {
			return err
		}
		user.AdditionalGids = append(user.AdditionalGids, gid)
	}
	return nil
}

// parseUser understands uid[:gid]. Names would mean a look into the guest's
// passwd, which is the guest's business.
func parseUser(s string) (uid uint32, gid *uint32, err error) {
	uidText, gidText, hasGid := strings.Cut(s, ":")
	if uid, err = parseID("user", uidText); err != nil {
		return 0, nil, err
	}
	if !hasGid {
		return uid, nil, nil
	}
	g, err := parseID("user", gidText)
	if err != nil {
		return 0, nil, err
	}
	return uid, &g, nil
}

func parseID(flag, s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	// The highest number means "no change" to the kernel.
	if err != nil || id == 1<<32-1 {
		return 0, &usageError{
			msg:  fmt.Sprintf("exec: --%s: %q is no numeric id", flag, s),
			hint: "--user takes UID[:GID], --additional-gids a GID, all of them numbers",
		}
	}
	return uint32(id), nil
}
