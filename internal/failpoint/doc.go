// Package failpoint names the lines at which a crash test kills the daemon.
//
// A failpoint is one call, failpoint.Hit("tree/step"), placed between two
// side effects whose half-way state a restart must clean up or complete. In
// ordinary builds Hit is an empty function that the compiler removes. Built
// with the tag "failpoints", it reads two environment variables:
//
//	BERTH_FAILPOINT=name[:n]     SIGKILL this process at the n-th hit (default 1)
//	BERTH_FAILPOINT_TRACE=file   append the name of every hit to file
//
// The trace is how a crash test learns which failpoints a scenario passes, so
// that a new failpoint is tested from the day it is written.
package failpoint
