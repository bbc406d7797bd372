// Package stats reads what pods and containers use: from cgroup files of
// version 1 and 2, from their network namespaces, and from the directories of
// their writable layers. It reads when it is asked, keeps no history but the
// last CPU reading and the last measurement of a layer, and starts nothing but
// the measurement of a large layer.
//
//	parse.go     the formats of the kernel's files; pure
//	reader.go    one cgroup's usage, whichever version the host has
//	v1.go, v2.go where each number is
//	rate.go      CPU use in a window
//	netdev.go    network interfaces
//	process.go   processes and what they hold open
//	layer.go     writable layers
//
// The CRI server calls it, and turns what it returns into the CRI's messages
// and into metrics.
package stats
