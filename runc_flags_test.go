package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/vzrun/vzrun/internal/cli"
)

// Flags of runc 1.5.2, as `runc VERB --help` lists them, and those that it hides;
// those with "=" take a value.
func TestFlagsOfRunc(t *testing.T) {
	flags := map[string]string{
		"":           "debug log= log-format= root= systemd-cgroup rootless=",
		"checkpoint": "image-path= work-path= parent-path= leave-running tcp-established tcp-skip-in-flight link-remap ext-unix-sk shell-job lazy-pages status-fd= page-server= file-locks pre-dump manage-cgroups-mode= empty-ns= auto-dedup",
		"create":     "bundle= b= console-socket= pidfd-socket= pid-file= no-pivot no-new-keyring preserve-fds=",
		"delete":     "force f",
		"events":     "interval= stats",
		"exec":       "console-socket= pidfd-socket= cwd= env= e= tty t user= u= additional-gids= g= process= p= detach d pid-file= process-label= apparmor= no-new-privs cap= c= preserve-fds= cgroup= ignore-paused",
		"kill":       "all a",
		"list":       "format= f= quiet q",
		"ps":         "format= f=",
		"restore":    "console-socket= image-path= work-path= tcp-established ext-unix-sk shell-job file-locks manage-cgroups-mode= bundle= b= detach d pid-file= no-subreaper no-pivot empty-ns= auto-dedup lazy-pages lsm-profile= lsm-mount-context=",
		"run":        "bundle= b= console-socket= pidfd-socket= detach d keep pid-file= no-subreaper no-pivot no-new-keyring preserve-fds=",
		"spec":       "bundle= b= rootless",
		"update":     "resources= r= blkio-weight= cpu-period= cpu-quota= cpu-burst= cpu-share= cpu-rt-period= cpu-rt-runtime= cpuset-cpus= cpuset-mems= memory= cpu-idle= memory-reservation= memory-swap= pids-limit= l3-cache-schema= mem-bw-schema= kernel-memory= kernel-memory-tcp=",
	}
	app := newApp()
	for verb, names := range flags {
		known := app.Flags
		if verb != "" {
			known = app.Command(verb).Flags
		}
		for name := range strings.FieldsSeq(names) {
			name, value := strings.CutSuffix(name, "=")
			i := slices.IndexFunc(known, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
			if i < 0 {
				t.Errorf("%s: no flag %s", verb, name)
				continue
			}
			if _, alone := known[i].(*cli.BoolFlag); alone == value {
				t.Errorf("%s: flag %s takes a value: %v", verb, name, !value)
			}
		}
	}
}
