package preflight

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const docker = "docker-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope"

func namespaces(user, uts uint64) map[string]uint64 {
	return map[string]uint64{"user": user, "uts": uts, "ipc": 3, "pid": 4, "net": 5, "mnt": 6, "time": 7}
}

// guest is an init and tasks with files in it.
func guest(tasks ...Task) *Facts {
	f := &Facts{
		Tasks: []Task{{Pid: 100, Parent: 1, Guest: 1, Command: "systemd", Namespaces: namespaces(1, 2)}},
		Mounts: []Mount{
			{ID: 30, Namespace: 6, Device: "8:1", Root: "/srv/rootfs", Place: "/", FS: "ext4"},
			{ID: 31, Namespace: 6, Device: "0:5", Root: "/", Place: "/proc", FS: "proc"},
			{ID: 32, Namespace: 6, Device: "0:6", Root: "/", Place: "/run", FS: "tmpfs"},
		},
		Sockets: map[uint64]Socket{},
		Outside: []string{"/dev/null", "/mnt/host"},
	}
	for i, t := range tasks {
		t.Pid, t.Guest, t.Parent = 101+i, 20+i, 100
		if t.Namespaces == nil {
			t.Namespaces = namespaces(1, 2)
		}
		if t.Command == "" {
			t.Command = "thing"
		}
		f.Tasks = append(f.Tasks, t)
	}
	return f
}

func having(files ...File) *Facts { return guest(Task{Unit: "a.service", Files: files}) }

func mapping(files ...File) *Facts { return guest(Task{Unit: "a.service", Maps: files}) }

// onConsole is a guest in which a task has the console open, of a certain devpts, and
// a session has a terminal.
func onConsole(terminal uint64, on uint32) *Facts {
	f := having(device("/dev/console", 136, 3, 33))
	f.Tasks[1].Files[0].On = unix.Mkdev(0, on)
	f.Tasks[0].Terminal = terminal
	f.Mounts = append(f.Mounts, Mount{ID: 34, Namespace: 6, Device: "0:60", Root: "/", Place: "/dev/pts", FS: "devpts"},
		Mount{ID: 33, Namespace: 6, Device: "0:60", Root: "/3", Place: "/dev/console", FS: "devpts"})
	return f
}

func regular(link string, names uint32, size uint64) File {
	return File{Link: link, Mode: unix.S_IFREG, Names: names, Size: size, Mount: 30, On: 1, Inode: 77}
}

func device(link string, major, minor uint32, mount uint64) File {
	return File{Link: link, Mode: unix.S_IFCHR, Device: unix.Mkdev(major, minor), Mount: mount}
}

func socket(protocol string, s Socket) *Facts {
	f := having(File{Link: "socket:[9]", Mode: unix.S_IFSOCK, Protocol: protocol, Inode: 9})
	f.Sockets[9] = s
	return f
}

func mounted(m ...Mount) *Facts {
	f := guest(Task{Unit: "a.service", Namespaces: map[string]uint64{"user": 1, "uts": 2, "ipc": 3, "pid": 4, "mnt": 8}})
	f.Mounts = append(f.Mounts, m...)
	return f
}

// Each is what one look says, and what must be found in it: "kind: words of what |
// words of the remedy", or nothing.
func TestDecide(t *testing.T) {
	all := Options{TCPEstablished: true, ExtUnixSockets: true, ShellJob: true, FileLocks: true, LinkRemap: true, GhostLimit: 1 << 30}
	none := Options{GhostLimit: 1 << 20}
	anonymous := func(name string) *Facts { return having(File{Link: "anon_inode:" + name, Mode: 0o600}) }
	for name, tt := range map[string]struct {
		facts   *Facts
		options Options
		want    string
	}{
		"a plain guest":         {guest(Task{}), none, ""},
		"user namespace":        {guest(Task{Unit: "a.service", Namespaces: namespaces(9, 2)}), all, "namespace: user namespace | PrivateUsers=no in a drop-in of a.service"},
		"uts namespace":         {guest(Task{Namespaces: namespaces(1, 9)}), all, "namespace: uts namespace | end process 20"},
		"time namespace":        {guest(Task{Unit: "a.service", Namespaces: map[string]uint64{"time": 9}}), all, "namespace: time namespace | systemctl stop a.service"},
		"cgroup namespace":      {guest(Task{Unit: "a.service", Namespaces: map[string]uint64{"cgroup": 9}}), all, "namespace: cgroup namespace | ProtectControlGroups=no"},
		"time for children":     {guest(Task{Namespaces: map[string]uint64{"time_for_children": 9}}), all, "namespace: a time namespace | end process"},
		"a held namespace":      {having(File{Link: "net:[99]", Mode: unix.S_IFREG}), all, "descriptor: holds a net namespace | stop"},
		"a namespace of a task": {having(File{Link: "net:[5]", Mode: unix.S_IFREG}), all, ""},
		"a socket's name":       {having(File{Link: "pipe:[99]", Mode: unix.S_IFIFO}), all, ""},
		"one that ends":         {guest(Task{Namespaces: map[string]uint64{}}), none, ""},
		"traced":                {guest(Task{Tracer: 200}), all, "traced: traced by process 200 | gdb"},
		"saved kinds":           {having(File{Link: "anon_inode:[eventpoll]"}, File{Link: "anon_inode:inotify"}, File{Link: "anon_inode:[fanotify]"}, File{Link: "anon_inode:[pidfd]"}, File{Link: "anon_inode:[timerfd]"}), none, ""},
		"io_uring":              {anonymous("[io_uring]"), all, "descriptor: io_uring | seccomp profile"},
		"bpf":                   {anonymous("bpf-prog"), all, "descriptor: BPF | stop a.service"},
		"userfaultfd":           {anonymous("[userfaultfd]"), all, "descriptor: userfaultfd | stop a.service"},
		"seccomp":               {anonymous("seccomp notify"), all, "descriptor: seccomp notifier | stop"},
		"perf":                  {anonymous("[perf_event]"), all, "descriptor: performance counter | stop"},
		"landlock":              {anonymous("[landlock-ruleset]"), all, "descriptor: Landlock | stop"},
		"kvm":                   {anonymous("kvm-vm"), all, "descriptor: KVM | virtual machine"},
		"a kind of tomorrow":    {anonymous("[new\x1b]"), all, `descriptor: "[new?]" | stop`},
		"mapped io_uring":       {mapping(File{Link: "anon_inode:[io_uring]"}), all, "descriptor: io_uring | "},
		"secret memory":         {having(File{Link: "/secretmem (deleted)", Mode: unix.S_IFREG}), all, "memory: memfd_secret | stop"},
		"mapped secret":         {mapping(File{Link: "/secretmem (deleted)", Mode: unix.S_IFREG}), all, "memory: memfd_secret | stop"},
		"memfd":                 {having(File{Link: "/memfd:x (deleted)", Mode: unix.S_IFREG, Mount: 3, Size: 1 << 40}), none, ""},
		"a pipe":                {having(File{Link: "pipe:[3]", Mode: unix.S_IFIFO, Mount: 12}), none, ""},
		"an open file":          {having(regular("/var/log/x", 1, 1<<40)), none, ""},
		"a small deleted one":   {having(regular("/x (deleted)", 0, 1<<20)), none, ""},
		"a big deleted one":     {having(regular("/x (deleted)", 0, 3<<20)), none, "deleted-file: takes 3 MiB; up to 1 MiB | close that file"},
		"a big mapped one":      {mapping(regular("/x (deleted)", 0, 3<<20)), none, "deleted-file: takes 3 MiB | stop"},
		"shared memory":         {mapping(File{Link: "/SYSV00 (deleted)", Mode: unix.S_IFREG, Size: 1 << 40, Mount: 2}, File{Link: "/dev/zero (deleted)", Mode: unix.S_IFREG, Size: 1 << 40, Mount: 2}), none, ""},
		"deleted, another name": {having(regular("/x (deleted)", 1, 0)), none, "deleted-file: deleted of a file that has others | --link-remap"},
		"the same, allowed":     {having(regular("/x (deleted)", 1, 0)), all, ""},
		"outside":               {having(File{Link: "/root/x", Mode: unix.S_IFREG, Mount: 99}), all, "outside-file: outside the guest | stop a.service"},
		"a terminal outside":    {having(device("/dev/pts/1", 136, 1, 99)), none, "outside-file: terminal | --shell-job"},
		"the same, shell job":   {having(device("/dev/pts/1", 136, 1, 99)), all, ""},
		"a terminal inside":     {having(device("/dev/pts/1", 136, 1, 30)), none, ""},
		"the console, a getty":  {onConsole(unix.Mkdev(136, 3), 60), none, ""},
		"the console, alone":    {onConsole(0, 60), none, "terminal: no session's terminal | wait until a getty waits there, or in the guest: systemctl stop a.service"},
		"the same, shell jobs":  {onConsole(0, 60), all, ""},
		"a terminal like it":    {onConsole(0, 61), none, ""},
		"null":                  {having(device("/dev/null", 1, 3, 30)), none, ""},
		"tun":                   {having(device("/dev/net/tun", 10, 200, 30)), none, ""},
		"fuse":                  {having(device("/dev/fuse", 10, 229, 30)), all, "descriptor: /dev/fuse\" (10:229) | stop"},
		"the program of a fuse mount": {func() *Facts {
			f := having(device("/dev/fuse", 10, 229, 30))
			f.Mounts = append(f.Mounts, Mount{ID: 40, Namespace: 6, Device: "0:9", Root: "/", Place: "/mnt", FS: "fuse"})
			return f
		}(), all, "mount: FUSE | umount"},
		"a mapped device": {mapping(device("/dev/dri/card0", 226, 0, 30)), all, "memory: card0\" mapped | stop"},
		"mapped zero":     {mapping(device("/dev/zero", 1, 5, 30)), none, ""},
		"a disk":          {having(File{Link: "/dev/sda", Mode: unix.S_IFBLK}), all, "descriptor: block device | stop"},
		"unix": {func() *Facts {
			f := socket("UNIX-STREAM", Socket{Stream: true, State: 1, Peer: 10, Peered: true})
			f.Tasks[0].Files = []File{{Link: "socket:[10]", Mode: unix.S_IFSOCK, Protocol: "UNIX-STREAM", Inode: 10}}
			return f
		}(), none, ""},
		"unix, outside":              {socket("UNIX-STREAM", Socket{Stream: true, State: 1, Peer: 10, Peered: true}), all, "connection: unix socket outside | systemctl stop"},
		"unix, the other has closed": {socket("UNIX-STREAM", Socket{Stream: true, State: 1, Peer: 10}), none, ""},
		"unix datagrams":             {socket("UNIX", Socket{Peer: 10, Peered: true}), none, "connection: unix socket outside | --ext-unix-sk"},
		"unix datagrams to the host": {func() *Facts {
			f := socket("UNIX", Socket{Peer: 10, Peered: true})
			f.Sockets[10] = Socket{Host: true}
			return f
		}(), all, "connection: unix socket outside | close that"},
		"the same, allowed too":  {socket("UNIX", Socket{Peer: 10, Peered: true}), all, ""},
		"tcp":                    {socket("TCPv6", Socket{TCP: true, State: 1}), none, "connection: open TCP | --tcp-established"},
		"tcp, allowed":           {socket("TCP", Socket{TCP: true, State: 1}), all, ""},
		"tcp, half closed":       {socket("TCP", Socket{TCP: true, State: 8}), none, "connection: open TCP | "},
		"tcp listener":           {socket("TCP", Socket{TCP: true, State: 10}), none, ""},
		"tcp, in the queue":      {socket("TCP", Socket{TCP: true, State: 10, Queued: 2}), all, "connection: not accepted | "},
		"tcp, left out":          {socket("TCP", Socket{TCP: true, State: 10, Queued: 2}), Options{SkipInFlight: true}, ""},
		"udp":                    {socket("UDPv6", Socket{}), none, ""},
		"netlink":                {socket("NETLINK", Socket{}), none, ""},
		"mptcp":                  {socket("MPTCP", Socket{}), all, "socket: MPTCP | net.mptcp.enabled=0"},
		"vsock":                  {socket("AF_VSOCK", Socket{}), all, "socket: protocol AF_VSOCK | stop"},
		"closed meanwhile":       {socket("", Socket{}), none, ""},
		"hugetlbfs":              {mounted(Mount{ID: 40, Namespace: 6, Device: "0:9", Root: "/", Place: "/dev/hugepages", FS: "hugetlbfs"}), all, "mount: hugetlbfs | dev-hugepages.mount"},
		"fuse mount":             {mounted(Mount{ID: 40, Namespace: 6, Device: "0:9", Root: "/", Place: "/mnt/a b", FS: "fuse.sshfs"}), all, "mount: FUSE file system at \"/mnt/a b\" | umount \"/mnt/a b\""},
		"fuseblk mount":          {mounted(Mount{ID: 40, Namespace: 6, Device: "0:9", Root: "/", Place: "/mnt", FS: "fuseblk"}), all, "mount: FUSE | umount"},
		"fusectl":                {mounted(Mount{ID: 40, Namespace: 6, Device: "0:9", Root: "/", Place: "/mnt", FS: "fusectl"}), all, ""},
		"fuse from outside":      {mounted(Mount{ID: 40, Namespace: 6, Device: "0:9", Root: "/x", Place: "/mnt/host/x", FS: "fuse.lxcfs"}), all, ""},
		"the same, in a service": {mounted(Mount{ID: 40, Namespace: 6, Device: "0:9", Root: "/x", Place: "/mnt/host", FS: "fuse.lxcfs"}, Mount{ID: 41, Namespace: 8, Device: "0:9", Root: "/x/y", Place: "/elsewhere", FS: "fuse.lxcfs", Task: 1}), all, ""},
		"ramfs in a service":     {mounted(Mount{ID: 41, Namespace: 8, Device: "0:9", Root: "/", Place: "/run/credentials/a", FS: "ramfs", Task: 1}), all, "mount: file system ramfs | stop a.service"},
		"a part of the root":     {mounted(Mount{ID: 41, Namespace: 8, Device: "8:1", Root: "/srv/rootfs/tmp/private", Place: "/tmp", FS: "ext4", Task: 1}), all, ""},
		"a part of a tmpfs":      {mounted(Mount{ID: 41, Namespace: 8, Device: "0:6", Root: "/user", Place: "/run/user", FS: "tmpfs", Task: 1}), all, ""},
		"a part of nothing":      {mounted(Mount{ID: 41, Namespace: 8, Device: "0:9", Root: "/var/tmp", Place: "/var/tmp", FS: "tmpfs", Task: 1}), all, "mount: the whole of which is mounted nowhere | PrivateTmp=yes in a drop-in of a.service"},
		"queues":                 {&Facts{Tasks: guest().Tasks, Queues: 2}, all, "queue: 2 POSIX message queues | remove it"},
		"a link to elsewhere":    {&Facts{Tasks: guest().Tasks, Links: []Link{{"eth\x1b0"}}}, all, "network: interface eth?0 | ip link set"},
		"cgroups of others":      {&Facts{Tasks: guest().Tasks, CgroupsAbove: true}, all, "namespace: joined a cgroup namespace | path in config.json"},
		"frozen, thawed":         {&Facts{Tasks: guest().Tasks, Frozen: []string{"a"}}, all, ""},
		"frozen":                 {&Facts{Tasks: guest().Tasks, Frozen: []string{"a.service"}}, Options{RefuseFrozen: true}, "frozen: \"a.service\" is frozen | thaw"},
		"not all looked at":      {&Facts{Tasks: guest().Tasks, Unseen: 3}, all, "incomplete: 3 open files | who has so many"},
	} {
		t.Run(name, func(t *testing.T) { assertFound(t, Decide(tt.facts, tt.options), tt.want) })
	}
}

func assertFound(t *testing.T, found []Obstacle, want string) {
	t.Helper()
	if want == "" {
		if len(found) != 0 {
			t.Errorf("found %+v", found)
		}
		return
	}
	kind, words, _ := strings.Cut(want, ": ")
	what, remedy, _ := strings.Cut(words, " | ")
	if len(found) != 1 || found[0].Kind != kind || !strings.Contains(found[0].What, what) || !strings.Contains(found[0].Remedy, remedy) || found[0].Remedy == "" {
		t.Errorf("found %+v, want %s", found, want)
	}
}

func TestDecideLocks(t *testing.T) {
	locked := regular("/x", 1, 0)
	locked.Locked = true
	assertFound(t, Decide(having(locked), Options{}), "lock: holds | --file-locks")
	assertFound(t, Decide(having(locked), Options{FileLocks: true}), "")
	assertFound(t, Decide(having(regular("/x", 1, 0)), Options{}), "")
}

func TestDecideQueueOfATask(t *testing.T) {
	f := having(File{Link: "/q", Mode: unix.S_IFREG, On: 50, Mount: 98})
	f.Queues, f.QueuesOn = 1, 50
	found := Decide(f, Options{})
	if len(found) != 2 || found[0].Kind != Queue || found[0].Unit != "a.service" || found[1].Pid != 0 {
		t.Errorf("found %+v", found)
	}
}

// A session from outside is one obstacle, whatever it has brought with it.
func TestDecideSessions(t *testing.T) {
	f := guest(Task{Command: "bash", Files: []File{{Link: "/root/x", Mode: unix.S_IFREG, Mount: 99}}})
	f.Tasks[1].Parent = 7
	assertFound(t, Decide(f, Options{}), "session: from outside the guest | kill 101")
	child := f.Tasks[1]
	child.Pid, child.Parent = 150, 101
	f.Tasks = append(f.Tasks, child)
	assertFound(t, Decide(f, Options{}), "session: from outside the guest | --end-sessions")
	// A daemon that it has left behind is judged as any other.
	f.Tasks = append(f.Tasks[:1], child)
	f.Tasks[1].Parent = 100
	assertFound(t, Decide(f, Options{}), "outside-file: outside the guest | end process")
}

func TestContainersInside(t *testing.T) {
	container := func(unit string, ns uint64) Task {
		return Task{Unit: unit, Namespaces: map[string]uint64{"user": 1, "uts": ns, "ipc": ns, "pid": ns}}
	}
	f := guest(container(docker, 9), container(docker, 9), container("libpod-"+strings.TrimPrefix(docker, "docker-"), 10), container("", 11), container("thing.scope", 12))
	found := Decide(f, Options{})
	if len(found) != 4 {
		t.Fatalf("not one line for each container: %+v", found)
	}
	for i, want := range []string{"docker stop 0123456789ab,", "podman stop 0123456789ab,", "process 23 belongs to", "systemctl stop thing.scope"} {
		if found[i].Kind != Container || !strings.Contains(found[i].Remedy, want) {
			t.Errorf("%+v does not say %s", found[i], want)
		}
	}
	// One that shares namespaces with the guest is no less in the way.
	shared := container(docker, 12)
	shared.Namespaces["pid"] = 4
	assertFound(t, Decide(guest(shared), Options{}), "namespace: uts namespace | docker stop")
}

// What a guest makes many of is one line each, and not many lines.
func TestDecideIsBounded(t *testing.T) {
	var files []File
	for range 1000 {
		files = append(files, File{Link: "anon_inode:[io_uring]"})
	}
	if found := Decide(having(files...), Options{}); len(found) != 1 || found[0].Count != 1000 {
		t.Errorf("found %+v", found)
	}
	var tasks []Task
	for range 1000 {
		tasks = append(tasks, Task{Files: files[:1]})
	}
	found := Decide(guest(tasks...), Options{})
	if len(found) != maxObstacles+1 || found[maxObstacles].Kind != Incomplete || found[maxObstacles].Count != 800 {
		t.Errorf("found %d, last %+v", len(found), found[len(found)-1])
	}
}

func TestTextIsHarmless(t *testing.T) {
	evil := "\x1b]0;x\a\nvzrun: ok " + strings.Repeat("long", 1000) + "\u202e"
	f := guest(Task{Unit: UnitOf("/a/" + strings.ReplaceAll(evil, "/", "") + ".service"), Command: clean(evil, textLimit)})
	f.Tasks[1].Files = []File{regular("/"+evil+" (deleted)", 1, 0), {Link: "anon_inode:" + evil}, device(evil, 99, 1, 30)}
	f.Links = []Link{{evil}}
	f.Frozen = []string{evil}
	f.Mounts = append(f.Mounts, Mount{ID: 50, Namespace: 6, Device: "0:99", Root: "/", Place: evil, FS: evil})
	found := Decide(f, Options{RefuseFrozen: true})
	if len(found) != 6 {
		t.Errorf("found %d: %+v", len(found), found)
	}
	for _, o := range found {
		for _, text := range []string{o.Unit, o.Command, o.What, o.Remedy} {
			if len(text) > 600 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%d bytes: %q", len(text), text)
			}
		}
	}
}

func TestUnitOf(t *testing.T) {
	for path, want := range map[string]string{
		"/vz/web/system.slice/nginx.service":                         "nginx.service",
		"/vz/web/system.slice/a.service/payload":                     "a.service",
		"/vz/web/user.slice/user-0.slice/session-1.scope":            "session-1.scope",
		"/vz/web/user.slice/user-0.slice/user@0.service/app.slice/x": "user@0.service",
		"/vz/web/x;reboot $(x).service":                              "x?reboot???x?.service",
		"/vz/web/init.scope":                                         "",
		"/vz/web":                                                    "",
		"/":                                                          "",
		"":                                                           "",
	} {
		if got := UnitOf(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}
