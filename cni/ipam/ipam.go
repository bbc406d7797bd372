// Package ipam leases the addresses of a network.
//
// It owns the records of one network: one per leased address, named by the
// address and naming its holder; one per attachment, under attachments/,
// saying which addresses it has, so that no operation reads the others; and one
// marker per range set with the address leased last, where the next search
// starts. Every record carries the boot ID. A lease of another boot belongs to
// nobody, since no sandbox survives a reboot.
//
// An attachment is recorded before its leases and forgotten after them, and a
// lease precedes everything made for its address. So whatever a killed process
// leaves behind is found by walking the attachments.
package ipam

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-io/berth/internal/failpoint"
)

const attachmentDir = "attachments"

// Lease is the record of one address.
type Lease struct {
	Sandbox string `json:"sandbox"`
	IfName  string `json:"ifname"`
	BootID  string `json:"bootID"`
	Pod     string `json:"pod,omitempty"` // namespace/name, for the reader
}

// Attachment is the record of one interface of one sandbox.
type Attachment struct {
	Lease
	Addresses []netip.Addr `json:"addresses"`
	// PortBackend names the firewall that holds port mappings of the
	// attachment; empty: it has none.
	PortBackend string `json:"portBackend,omitempty"`
}

// Exhausted is the error of a set without a free address.
type Exhausted struct{ Set Set }

func (e *Exhausted) Error() string {
	return fmt.Sprintf("no free address in %s: remove pods or add a range to ipam.ranges", e.Set)
}

// Allocator leases the addresses of one network.
type Allocator struct {
	store  Store
	bootID string
}

// New returns an allocator on store. Leases are stamped with bootID.
func New(store Store, bootID string) *Allocator {
	return &Allocator{store: store, bootID: bootID}
}

// Acquire leases one address of each set for want.Sandbox and want.IfName, and
// records want with them. An attachment that has leases already, from an ADD
// that was cut short, keeps those that are of the sets. The error of a full set
// is an *Exhausted, and nothing is leased then.
func (a *Allocator) Acquire(ctx context.Context, want Attachment, sets []Set) ([]netip.Addr, error) {
	want.BootID = a.bootID
	unlock, err := a.store.Lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	old, err := a.attachment(want.Sandbox, want.IfName)
	if err != nil {
		return nil, err
	}
	want.Addresses = nil
	var fresh []int // sets whose address is new
	for i, set := range sets {
		addr, err := a.keep(old, set, want.Lease)
		if err != nil {
			return nil, err
		}
		if !addr.IsValid() {
			if addr, err = a.search(ctx, i, set); err != nil {
				return nil, err
			}
			fresh = append(fresh, i)
		}
		want.Addresses = append(want.Addresses, addr)
	}
	return want.Addresses, a.record(old, want, fresh)
}

// record writes what Acquire decided.
func (a *Allocator) record(old, want Attachment, fresh []int) error {
	for _, addr := range old.Addresses {
		if slices.Contains(want.Addresses, addr) {
			continue
		}
		if err := a.release(addr, want.Sandbox, want.IfName); err != nil {
			return err
		}
	}
	if err := a.write(attachmentName(want.Sandbox, want.IfName), want); err != nil {
		return err
	}
	failpoint.Hit("cni/attachment-recorded")
	for _, addr := range want.Addresses {
		if err := a.write(addr.String(), want.Lease); err != nil {
			return err
		}
		failpoint.Hit("cni/lease-written")
	}
	for _, i := range fresh {
		if err := a.store.Write(markerName(i), []byte(want.Addresses[i].String())); err != nil {
			return err
		}
	}
	return nil
}

// keep returns an address of set that old has and that is still its own or free.
func (a *Allocator) keep(old Attachment, set Set, holder Lease) (netip.Addr, error) {
	if old.BootID != a.bootID {
		return netip.Addr{}, nil
	}
	for _, addr := range old.Addresses {
		if _, ok := set.Find(addr); !ok {
			continue
		}
		lease, held, err := a.lease(addr)
		if err != nil {
			return netip.Addr{}, err
		}
		if !held || lease.Sandbox == holder.Sandbox && lease.IfName == holder.IfName {
			return addr, nil
		}
	}
	return netip.Addr{}, nil
}

// search returns the next free address of set, round robin: an address is
// leased again as late as possible, when nobody has connections to its last
// holder any more.
func (a *Allocator) search(ctx context.Context, index int, set Set) (netip.Addr, error) {
	var last netip.Addr
	marker, err := a.store.Read(markerName(index))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return netip.Addr{}, err
	}
	// An unreadable marker only means to start at the beginning.
	last, _ = netip.ParseAddr(string(marker))
	for addr := range set.After(last) {
		if err := context.Cause(ctx); err != nil {
			return netip.Addr{}, fmt.Errorf("search for a free address: %w", err)
		}
		_, held, err := a.lease(addr)
		if err != nil {
			return netip.Addr{}, err
		}
		if !held {
			return addr, nil
		}
	}
	return netip.Addr{}, &Exhausted{Set: set}
}

// Attachment returns the record of an attachment, zero if there is none.
func (a *Allocator) Attachment(ctx context.Context, sandbox, ifName string) (Attachment, error) {
	unlock, err := a.store.Lock(ctx)
	if err != nil {
		return Attachment{}, err
	}
	defer unlock()
	return a.attachment(sandbox, ifName)
}

// Release gives up the addresses of an attachment and forgets it. One that is
// not known is no error.
func (a *Allocator) Release(ctx context.Context, sandbox, ifName string) error {
	unlock, err := a.store.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	att, err := a.attachment(sandbox, ifName)
	if err != nil {
		return err
	}
	for _, addr := range att.Addresses {
		if err := a.release(addr, sandbox, ifName); err != nil {
			return err
		}
		failpoint.Hit("cni/lease-released")
	}
	return a.store.Remove(attachmentName(sandbox, ifName))
}

// Attachments returns every recorded attachment, those of earlier boots too.
func (a *Allocator) Attachments(ctx context.Context) ([]Attachment, error) {
	unlock, err := a.store.Lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	names, err := a.store.List(attachmentDir)
	if err != nil {
		return nil, fmt.Errorf("list attachments: %w", err)
	}
	var out []Attachment
	for _, name := range names {
		att, known, err := read[Attachment](a.store, attachmentDir+"/"+name)
		if err != nil {
			return nil, err
		}
		if !known {
			att.Sandbox, att.IfName, _ = strings.Cut(name, ":")
		}
		out = append(out, att)
	}
	return out, nil
}

// Sweep removes the leases for whose holder keep is false, and those of earlier
// boots.
func (a *Allocator) Sweep(ctx context.Context, keep func(sandbox, ifName string) bool) error {
	unlock, err := a.store.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	names, err := a.store.List("")
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, name := range names {
		addr, err := netip.ParseAddr(name)
		if err != nil {
			continue // a marker
		}
		lease, held, err := a.lease(addr)
		if err != nil {
			return err
		}
		if held && keep(lease.Sandbox, lease.IfName) {
			continue
		}
		if err := a.store.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// release removes the lease of addr if the attachment holds it, or nobody.
func (a *Allocator) release(addr netip.Addr, sandbox, ifName string) error {
	lease, held, err := a.lease(addr)
	if err != nil {
		return err
	}
	if held && (lease.Sandbox != sandbox || lease.IfName != ifName) {
		return nil
	}
	return a.store.Remove(addr.String())
}

// lease returns the lease of addr; held is false if it has none that counts.
func (a *Allocator) lease(addr netip.Addr) (l Lease, held bool, err error) {
	l, known, err := read[Lease](a.store, addr.String())
	return l, known && l.BootID == a.bootID, err
}

func (a *Allocator) attachment(sandbox, ifName string) (Attachment, error) {
	att, _, err := read[Attachment](a.store, attachmentName(sandbox, ifName))
	return att, err
}

func (a *Allocator) write(name string, record any) error {
	data, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return a.store.Write(name, append(data, '\n'))
}

// read decodes a record. One that cannot be decoded counts as absent: writes
// are atomic, so only a power failure leaves one, and then it is of an earlier
// boot.
func read[T any](s Store, name string) (record T, known bool, err error) {
	data, err := s.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return record, false, nil
	}
	if err != nil {
		return record, false, fmt.Errorf("read %s: %w", name, err)
	}
	if json.Unmarshal(data, &record) != nil {
		var none T
		return none, false, nil
	}
	return record, true, nil
}

func attachmentName(sandbox, ifName string) string {
	return attachmentDir + "/" + sandbox + ":" + ifName
}

func markerName(set int) string { return "last-reserved-" + strconv.Itoa(set) }
