// Package host has a machine that systemd runs, with cgroup v2 only, become a
// node of a cluster, with the units that Berth ships, and looks at the node from
// the machine: systemd, cgroups, what is left after a restart, a reboot and a
// reset. tests/vm runs it in its virtual machine, and nothing else does: it
// installs programs and units, and reboots.
package host
