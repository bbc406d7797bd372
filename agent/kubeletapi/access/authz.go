package access

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SubjectAccessReviews asks the API server whether somebody may do something;
// client-go's AuthorizationV1().SubjectAccessReviews() does.
type SubjectAccessReviews interface {
	Create(context.Context, *authorizationv1.SubjectAccessReview, metav1.CreateOptions) (*authorizationv1.SubjectAccessReview, error)
}

// AuthzConfig is KubeletConfiguration.authorization.
type AuthzConfig struct {
	NodeName string
	// Reviews is nil with mode AlwaysAllow.
	Reviews SubjectAccessReviews
	// AllowTTL and DenyTTL are how long answers hold.
	AllowTTL, DenyTTL time.Duration
}

// Authorizer tells who may ask what.
type Authorizer struct {
	config  AuthzConfig
	answers *cache[bool]
}

// NewAuthorizer returns an Authorizer; it asks nobody yet.
func NewAuthorizer(c AuthzConfig) *Authorizer {
	return &Authorizer{config: c, answers: newCache[bool]()}
}

// May tells whether the user may do verb to this node's subresource.
func (a *Authorizer) May(ctx context.Context, u *User, verb, subresource string) (bool, error) {
	if a.config.Reviews == nil {
		return true, nil
	}
	spec := authorizationv1.SubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: verb, Version: "v1", Resource: "nodes", Subresource: subresource, Name: a.config.NodeName,
		},
		User: u.Name, UID: u.UID, Groups: u.Groups,
	}
	for k, v := range u.Extra {
		if spec.Extra == nil {
			spec.Extra = map[string]authorizationv1.ExtraValue{}
		}
		spec.Extra[k] = v
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return false, fmt.Errorf("write a question about access: %w", err)
	}
	sum := sha256.Sum256(text)
	return a.answers.get(ctx, string(sum[:]), func(ctx context.Context) (bool, time.Duration, error) {
		var answer *authorizationv1.SubjectAccessReview
		err := retry(ctx, func() (err error) {
			answer, err = a.config.Reviews.Create(ctx, &authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
			return err
		})
		if err != nil {
			return false, 0, fmt.Errorf("ask the API server about access: %w", err)
		}
		if answer.Status.Allowed && !answer.Status.Denied {
			return true, a.config.AllowTTL, nil
		}
		return false, a.config.DenyTTL, nil
	})
}
