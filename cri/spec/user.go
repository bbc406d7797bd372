package spec

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Accounts are the contents of /etc/passwd and /etc/group of the image; empty
// where the image has none.
type Accounts struct {
	Passwd, Group []byte
}

// ResolveUser decides as whom a container runs. The request's user wins over
// the image's; who says nothing is root. A name must be among the image's
// accounts, a number need not be. Supplemental groups are those of the request
// and, with policy Merge, those that the image puts the user in; the primary
// group is always among them.
func ResolveUser(sc *runtimeapi.LinuxContainerSecurityContext, imageUser string, accounts Accounts) (*runtimeapi.LinuxContainerUser, error) {
	name, group, _ := strings.Cut(imageUser, ":")
	asked := sc.GetRunAsUsername()
	if asked == "" && sc.GetRunAsUser() != nil {
		asked = strconv.FormatInt(sc.GetRunAsUser().GetValue(), 10)
	}
	if asked != "" {
		name, group = asked, ""
	}
	if sc.GetRunAsGroup() != nil {
		if asked == "" {
			return nil, fieldError("linux.security_context.run_as_group", "it needs run_as_user or run_as_username beside it")
		}
		group = strconv.FormatInt(sc.GetRunAsGroup().GetValue(), 10)
	}
	if name == "" {
		name = "0"
	}
	account, err := findUser(name, accounts)
	if err != nil {
		return nil, err
	}
	gid := int64(account.Gid)
	if group != "" {
		if gid, err = findGroup(group, accounts); err != nil {
			return nil, err
		}
	}
	groups := []int64{gid}
	switch policy := sc.GetSupplementalGroupsPolicy(); policy {
	case runtimeapi.SupplementalGroupsPolicy_Strict:
	case runtimeapi.SupplementalGroupsPolicy_Merge:
		if groups, err = memberships(groups, account.Name, accounts); err != nil {
			return nil, err
		}
	default:
		return nil, fieldError("linux.security_context.supplemental_groups_policy", "%v is not known", policy)
	}
	groups = append(groups, sc.GetSupplementalGroups()...)
	slices.Sort(groups)
	u := &runtimeapi.LinuxContainerUser{Uid: int64(account.Uid), Gid: gid, SupplementalGroups: slices.Compact(groups)}
	return u, checkUser(u)
}

// findUser looks a user up by name, or by number; a number that the image does
// not know has group 0 and no name.
func findUser(who string, accounts Accounts) (user.User, error) {
	uid, numberErr := strconv.ParseInt(who, 10, 64)
	found, err := user.ParsePasswdFilter(bytes.NewReader(accounts.Passwd), func(u user.User) bool {
		if numberErr == nil {
			return int64(u.Uid) == uid
		}
		return u.Name == who
	})
	switch {
	case err != nil:
		return user.User{}, fmt.Errorf("read /etc/passwd of the image: %w", err)
	case len(found) > 0:
		return found[0], nil
	case numberErr != nil:
		return user.User{}, fmt.Errorf("user %q is not in /etc/passwd of the image", who)
	}
	return user.User{Uid: int(uid)}, nil
}

func findGroup(which string, accounts Accounts) (int64, error) {
	if gid, err := strconv.ParseInt(which, 10, 64); err == nil {
		return gid, nil
	}
	found, err := user.ParseGroupFilter(bytes.NewReader(accounts.Group), func(g user.Group) bool { return g.Name == which })
	if err != nil {
		return 0, fmt.Errorf("read /etc/group of the image: %w", err)
	}
	if len(found) == 0 {
		return 0, fmt.Errorf("group %q is not in /etc/group of the image", which)
	}
	return int64(found[0].Gid), nil
}

func memberships(groups []int64, name string, accounts Accounts) ([]int64, error) {
	if name == "" {
		return groups, nil
	}
	found, err := user.ParseGroupFilter(bytes.NewReader(accounts.Group), func(g user.Group) bool {
		return slices.Contains(g.List, name)
	})
	if err != nil {
		return nil, fmt.Errorf("read /etc/group of the image: %w", err)
	}
	for _, g := range found {
		groups = append(groups, int64(g.Gid))
	}
	return groups, nil
}

// checkUser refuses numbers that the kernel does not have; -1 would mean "do
// not change".
func checkUser(u *runtimeapi.LinuxContainerUser) error {
	for _, id := range append([]int64{u.Uid, u.Gid}, u.SupplementalGroups...) {
		if id < 0 || id >= math.MaxUint32 {
			return fmt.Errorf("user or group ID %d is out of range", id)
		}
	}
	return nil
}

func ociUser(u *runtimeapi.LinuxContainerUser) specs.User {
	o := specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid)}
	for _, g := range u.SupplementalGroups {
		o.AdditionalGids = append(o.AdditionalGids, uint32(g))
	}
	return o
}
