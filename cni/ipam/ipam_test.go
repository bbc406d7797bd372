package ipam_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/berth-io/berth/cni/ipam"
)

func set(t testing.TB, subnets ...string) ipam.Set {
	t.Helper()
	var s ipam.Set
	for _, subnet := range subnets {
		r, err := ipam.NewRange(netip.MustParsePrefix(subnet))
		if err != nil {
			t.Fatal(err)
		}
		s = append(s, r)
	}
	return s
}

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestAfterYieldsEveryUsableAddressOnceStartingBehindTheLast(t *testing.T) {
	small := set(t, "10.0.0.0/29") // .1 is the gateway, .2 to .6 can be leased
	custom := set(t, "10.0.0.0/28")
	custom[0].Start, custom[0].End = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.9")
	custom[0].Gateway = netip.MustParseAddr("10.0.0.8")
	custom[0].Exclude = []netip.Prefix{netip.MustParsePrefix("10.0.0.2/31"), netip.MustParsePrefix("10.0.0.4/30")}
	for _, test := range []struct {
		name string
		set  ipam.Set
		last netip.Addr
		want []netip.Addr
	}{
		{"from the start", small, netip.Addr{}, addrs("10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6")},
		{"from the middle", small, netip.MustParseAddr("10.0.0.4"), addrs("10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4")},
		{"from the end", small, netip.MustParseAddr("10.0.0.6"), addrs("10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6")},
		{"from an address of no range", small, netip.MustParseAddr("10.9.0.6"), addrs("10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6")},
		{"through two ranges", set(t, "10.0.0.0/30", "10.0.1.0/30"), netip.MustParseAddr("10.0.1.2"), addrs("10.0.0.2", "10.0.1.2")},
		{"around exclusions", custom, netip.Addr{}, addrs("10.0.0.1", "10.0.0.9")},
		{"in IPv6", set(t, "fd00::/126"), netip.Addr{}, addrs("fd00::2", "fd00::3")},
		{"at the end of the address space", set(t, "255.255.255.252/30"), netip.Addr{}, addrs("255.255.255.254")},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := slices.Collect(test.set.After(test.last)); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// eachStore runs a contract test on every Store.
func eachStore(t *testing.T, f func(t *testing.T, s ipam.Store)) {
	t.Run("disk", func(t *testing.T) { f(t, ipam.NewDisk(filepath.Join(t.TempDir(), "net"))) })
	t.Run("fake", func(t *testing.T) { f(t, ipam.NewFake()) })
}

func TestStoreContract(t *testing.T) {
	eachStore(t, func(t *testing.T, s ipam.Store) {
		unlock, err := s.Lock(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		if _, err := s.Lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second Lock: %v", err)
		}
		if _, err := s.Read("10.0.0.1"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Read of nothing: %v", err)
		}
		if err := s.Remove("10.0.0.1"); err != nil {
			t.Errorf("Remove of nothing: %v", err)
		}
		if names, err := s.List("dir"); err != nil || len(names) > 0 {
			t.Errorf("List of nothing: %v, %v", names, err)
		}
		for _, name := range []string{"10.0.0.1", "10.0.0.1", "fd00::1", "dir/a:eth0"} {
			if err := s.Write(name, []byte(name)); err != nil {
				t.Fatal(err)
			}
		}
		if data, err := s.Read("dir/a:eth0"); err != nil || string(data) != "dir/a:eth0" {
			t.Errorf("Read: %q, %v", data, err)
		}
		top, err := s.List("")
		if err != nil || fmt.Sprint(top) != "[10.0.0.1 fd00::1]" {
			t.Errorf("List: %v, %v", top, err)
		}
		if err := s.Remove("fd00::1"); err != nil {
			t.Error(err)
		}
		if names, err := s.List("dir"); err != nil || fmt.Sprint(names) != "[a:eth0]" {
			t.Errorf("List of a directory: %v, %v", names, err)
		}
		unlock()
		unlock, err = s.Lock(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		unlock()
	})
}

func TestDiskListRemovesInterruptedWrites(t *testing.T) {
	dir := t.TempDir()
	half := filepath.Join(dir, ".tmp-10.0.0.2123")
	if err := os.WriteFile(half, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if names, err := ipam.NewDisk(dir).List(""); err != nil || len(names) > 0 {
		t.Errorf("List: %v, %v", names, err)
	}
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the half-written file is still there: %v", err)
	}
}

func holder(sandbox string) ipam.Attachment {
	return ipam.Attachment{Lease: ipam.Lease{Sandbox: sandbox, IfName: "eth0", Pod: "default/" + sandbox}}
}

func acquire(t *testing.T, a *ipam.Allocator, sandbox string, sets ...ipam.Set) string {
	t.Helper()
	got, err := a.Acquire(context.Background(), holder(sandbox), sets)
	if err != nil {
		t.Fatalf("acquire for %s: %v", sandbox, err)
	}
	return fmt.Sprint(got)
}

func TestAddressesAreLeasedRoundRobin(t *testing.T) {
	eachStore(t, func(t *testing.T, s ipam.Store) {
		ctx := context.Background()
		a := ipam.New(s, "boot")
		pods := []ipam.Set{set(t, "10.0.0.0/29"), set(t, "fd00::/64")}
		if got := acquire(t, a, "a", pods...); got != "[10.0.0.2 fd00::2]" {
			t.Errorf("first: %s", got)
		}
		if got := acquire(t, a, "b", pods...); got != "[10.0.0.3 fd00::3]" {
			t.Errorf("second: %s", got)
		}
		if err := a.Release(ctx, "a", "eth0"); err != nil {
			t.Fatal(err)
		}
		if got := acquire(t, a, "c", pods...); got != "[10.0.0.4 fd00::4]" {
			t.Errorf("after a release: %s", got)
		}
		if got := acquire(t, a, "c", pods...); got != "[10.0.0.4 fd00::4]" {
			t.Errorf("the same again: %s", got)
		}
		if err := a.Release(ctx, "unknown", "eth0"); err != nil {
			t.Errorf("release of nothing: %v", err)
		}
		for _, sandbox := range []string{"d", "e", "f"} {
			acquire(t, a, sandbox, pods...)
		}
		_, err := a.Acquire(ctx, holder("g"), pods)
		const want = "no free address in 10.0.0.1-10.0.0.6: remove pods or add a range to ipam.ranges"
		if err == nil || err.Error() != want {
			t.Errorf("exhausted: %v", err)
		}
		if err := a.Release(ctx, "b", "eth0"); err != nil {
			t.Fatal(err)
		}
		if got := acquire(t, a, "g", pods...); got != "[10.0.0.3 fd00::8]" {
			t.Errorf("after exhaustion: %s", got)
		}
	})
}

func TestAnExhaustedSecondFamilyLeasesNothingOfTheFirst(t *testing.T) {
	s := ipam.NewFake()
	a := ipam.New(s, "boot")
	pods := []ipam.Set{set(t, "10.0.0.0/24"), set(t, "fd00::/126")}
	acquire(t, a, "a", pods...)
	acquire(t, a, "b", pods...)
	if _, err := a.Acquire(context.Background(), holder("c"), pods); err == nil {
		t.Fatal("no error")
	}
	if _, err := s.Read("10.0.0.4"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("10.0.0.4 is leased: %v", err)
	}
}

func TestAChangedRangeMovesARetriedAttachment(t *testing.T) {
	s := ipam.NewFake()
	a := ipam.New(s, "boot")
	acquire(t, a, "a", set(t, "10.0.0.0/24"))
	if got := acquire(t, a, "a", set(t, "10.1.0.0/24")); got != "[10.1.0.2]" {
		t.Errorf("address in the new range: %s", got)
	}
	if _, err := s.Read("10.0.0.2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old address is still leased: %v", err)
	}
}

func TestALeaseThatPassedToAnotherHolderIsNotReleasedByTheFirst(t *testing.T) {
	s := ipam.NewFake()
	a := ipam.New(s, "boot")
	acquire(t, a, "a", set(t, "10.0.0.0/24"))
	if err := s.Write("10.0.0.2", []byte(`{"sandbox":"b","ifname":"eth0","bootID":"boot"}`)); err != nil {
		t.Fatal(err)
	}
	if err := a.Release(context.Background(), "a", "eth0"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read("10.0.0.2"); err != nil {
		t.Errorf("the lease of b is gone: %v", err)
	}
}

func TestUnreadableAndStaleRecordsCountAsFree(t *testing.T) {
	s := ipam.NewFake()
	for name, data := range map[string]string{
		"10.0.0.2": "", "10.0.0.3": `{"sandbox":"x","ifname":"eth0","bootID":"before"}`,
		"last-reserved-0": "garbage", "attachments/broken:eth0": "{",
	} {
		if err := s.Write(name, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	a := ipam.New(s, "boot")
	if got := acquire(t, a, "a", set(t, "10.0.0.0/24")) + acquire(t, a, "b", set(t, "10.0.0.0/24")); got != "[10.0.0.2][10.0.0.3]" {
		t.Errorf("leased: %s", got)
	}
	all, err := a.Attachments(context.Background())
	if err != nil || len(all) != 3 || all[2].Sandbox != "broken" || all[2].IfName != "eth0" {
		t.Errorf("attachments: %+v, %v", all, err)
	}
}

func TestSweepRemovesUnknownHoldersAndOtherBoots(t *testing.T) {
	eachStore(t, func(t *testing.T, s ipam.Store) {
		old, now := ipam.New(s, "before"), ipam.New(s, "boot")
		acquire(t, old, "old", set(t, "10.0.0.0/24"))
		acquire(t, now, "a", set(t, "10.0.0.0/24"))
		acquire(t, now, "b", set(t, "10.0.0.0/24"))
		err := now.Sweep(context.Background(), func(sandbox, _ string) bool { return sandbox != "b" })
		if err != nil {
			t.Fatal(err)
		}
		if names, err := s.List(""); err != nil || fmt.Sprint(names) != "[10.0.0.3 last-reserved-0]" {
			t.Errorf("left: %v, %v", names, err)
		}
	})
}

func TestConcurrentAcquiresNeverShareAnAddress(t *testing.T) {
	dir := t.TempDir()
	pods := set(t, "10.0.0.0/24")
	var mu sync.Mutex
	seen := map[string]bool{}
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			// A Disk each, as separate processes have.
			got, err := ipam.New(ipam.NewDisk(dir), "boot").Acquire(context.Background(), holder(fmt.Sprint(i)), []ipam.Set{pods})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			seen[got[0].String()] = true
		})
	}
	all.Wait()
	if len(seen) != 50 {
		t.Errorf("%d different addresses", len(seen))
	}
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"sandbox":"a","ifname":"eth0","bootID":"boot","addresses":["10.0.0.2"]}`), []byte("10.0.0.5"))
	f.Fuzz(func(t *testing.T, record, marker []byte) {
		s := ipam.NewFake()
		for name, data := range map[string][]byte{"attachments/a:eth0": record, "10.0.0.2": record, "last-reserved-0": marker} {
			if err := s.Write(name, data); err != nil {
				t.Fatal(err)
			}
		}
		a := ipam.New(s, "boot")
		pods := set(t, "10.0.0.0/24")
		got, err := a.Acquire(context.Background(), holder("a"), []ipam.Set{pods})
		if err != nil || len(got) != 1 {
			t.Fatalf("acquire: %v, %v", got, err)
		}
		if _, ok := pods.Find(got[0]); !ok {
			t.Fatalf("leased %s, which is not in the set", got[0])
		}
		if err := a.Release(context.Background(), "a", "eth0"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(got[0].String()); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s is still leased", got[0])
		}
	})
}
