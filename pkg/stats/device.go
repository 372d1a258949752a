package stats

import (
	"bytes"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// DeviceName is the path of the block device with a number as cgroups write it,
// "8:0"; the number itself when the kernel does not tell.
func (r *Reader) DeviceName(number string) string {
	if name, ok := r.devices.Load(number); ok {
		return name.(string)
	}
	name := number
	f := &file{}
	if b, ok := f.read(r.o.Sys, "dev/block/"+number+"/uevent"); ok {
		for line := range bytes.Lines(b) {
			if dev, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("DEVNAME=")); ok {
				name = "/dev/" + string(dev)
			}
		}
	}
	r.devices.Store(number, name)
	return name
}

// mountSource is what is mounted where path is.
func (r *Reader) mountSource(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return ""
	}
	want := fmt.Sprintf("%d:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)))
	source := ""
	r.mounts(func(number, _, _, from string) {
		if number == want {
			source = from
		}
	})
	return source
}

// onNetwork says that a path is on another machine, without touching it: one that
// does not answer would be waited for without end.
func (r *Reader) onNetwork(path string) bool {
	longest, kind := "", ""
	r.mounts(func(_, point, fstype, _ string) {
		if (path == point || strings.HasPrefix(path, strings.TrimSuffix(point, "/")+"/")) && len(point) >= len(longest) {
			longest, kind = point, fstype
		}
	})
	return strings.HasPrefix(kind, "nfs") || strings.HasPrefix(kind, "fuse") || kind == "cifs" || kind == "smb3" || kind == "ceph" || kind == "9p"
}

// mounts calls each with the device number, place, type and source of every mount.
func (r *Reader) mounts(each func(number, point, fstype, source string)) {
	f := &file{}
	b, _ := f.read(r.o.Proc, "self/mountinfo")
	for line := range bytes.Lines(b) {
		// "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw"
		before, after, _ := strings.Cut(string(line), " - ")
		place, what := strings.Fields(before), strings.Fields(after)
		if len(place) > 4 && len(what) > 1 {
			each(place[2], place[4], what[0], what[1])
		}
	}
}

// Cores counts physical cores and sockets; 0 where the machine does not tell.
func (r *Reader) Cores() (cores, sockets int) {
	f := &file{}
	var seenCores, seenSockets = map[[2]uint64]bool{}, map[uint64]bool{}
	for cpu := 0; ; cpu++ {
		dir := fmt.Sprintf("%s/devices/system/cpu/cpu%d/topology", r.o.Sys, cpu)
		core, ok := f.number(dir, "core_id")
		if !ok {
			return len(seenCores), len(seenSockets)
		}
		socket, _ := f.number(dir, "physical_package_id")
		seenCores[[2]uint64{socket, core}], seenSockets[socket] = true, true
	}
}
