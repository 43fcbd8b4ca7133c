package kube

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The objects of the API as its Go types have them (k8s.io/api and sigs.k8s.io/network-policy-api), for the oracle and
// the generator. A nil pointer is a field that is missing; a pointer to an empty list is a list with nothing in it.

type apiMeta struct {
	Name      string            `yaml:"name"`
	Namespace string            `yaml:"namespace,omitempty"`
	Labels    map[string]string `yaml:"labels,omitempty"`
}

type apiExpression struct {
	Key      string   `yaml:"key"`
	Operator string   `yaml:"operator"`
	Values   []string `yaml:"values,omitempty"`
}

type apiSelector struct {
	MatchLabels      map[string]string `yaml:"matchLabels,omitempty"`
	MatchExpressions []apiExpression   `yaml:"matchExpressions,omitempty"`
}

type apiContainerPort struct {
	Name          string `yaml:"name,omitempty"`
	ContainerPort int    `yaml:"containerPort"`
	Protocol      string `yaml:"protocol,omitempty"`
}

type apiContainer struct {
	Name          string             `yaml:"name"`
	RestartPolicy string             `yaml:"restartPolicy,omitempty"`
	Ports         []apiContainerPort `yaml:"ports,omitempty"`
}

type apiPodSpec struct {
	NodeName       string         `yaml:"nodeName,omitempty"`
	HostNetwork    bool           `yaml:"hostNetwork,omitempty"`
	Containers     []apiContainer `yaml:"containers"`
	InitContainers []apiContainer `yaml:"initContainers,omitempty"`
}

type apiIP struct {
	IP string `yaml:"ip"`
}

type apiPod struct {
	APIVersion string     `yaml:"apiVersion"`
	Kind       string     `yaml:"kind"`
	Metadata   apiMeta    `yaml:"metadata"`
	Spec       apiPodSpec `yaml:"spec"`
	Status     struct {
		Phase  string  `yaml:"phase,omitempty"`
		PodIP  string  `yaml:"podIP,omitempty"`
		PodIPs []apiIP `yaml:"podIPs,omitempty"`
	} `yaml:"status,omitempty"`
}

// apiController is a Deployment and its like, apart from CronJob.
type apiController struct {
	Metadata apiMeta `yaml:"metadata"`
	Spec     struct {
		Template struct {
			Metadata apiMeta    `yaml:"metadata"`
			Spec     apiPodSpec `yaml:"spec"`
		} `yaml:"template"`
	} `yaml:"spec"`
}

type apiNode struct {
	APIVersion string  `yaml:"apiVersion"`
	Kind       string  `yaml:"kind"`
	Metadata   apiMeta `yaml:"metadata"`
	Status     struct {
		Addresses []apiNodeAddress `yaml:"addresses"`
	} `yaml:"status"`
}

type apiNodeAddress struct {
	Type    string `yaml:"type"`
	Address string `yaml:"address"`
}

type apiNamespace struct {
	APIVersion string  `yaml:"apiVersion"`
	Kind       string  `yaml:"kind"`
	Metadata   apiMeta `yaml:"metadata"`
}

type apiNetworkPolicy struct {
	APIVersion string      `yaml:"apiVersion"`
	Kind       string      `yaml:"kind"`
	Metadata   apiMeta     `yaml:"metadata"`
	Spec       apiNetworks `yaml:"spec"`
}

type apiNetworks struct {
	PodSelector apiSelector `yaml:"podSelector"`
	PolicyTypes []string    `yaml:"policyTypes,omitempty"`
	Ingress     *[]apiRule  `yaml:"ingress,omitempty"`
	Egress      *[]apiRule  `yaml:"egress,omitempty"`
}

type apiRule struct {
	From  *[]apiPeer `yaml:"from,omitempty"`
	To    *[]apiPeer `yaml:"to,omitempty"`
	Ports *[]apiPort `yaml:"ports,omitempty"`
}

type apiPeer struct {
	PodSelector       *apiSelector `yaml:"podSelector,omitempty"`
	NamespaceSelector *apiSelector `yaml:"namespaceSelector,omitempty"`
	IPBlock           *apiIPBlock  `yaml:"ipBlock,omitempty"`
}

type apiIPBlock struct {
	CIDR   string   `yaml:"cidr"`
	Except []string `yaml:"except,omitempty"`
}

type apiPort struct {
	Protocol string `yaml:"protocol,omitempty"`
	Port     any    `yaml:"port,omitempty"` // int or string
	EndPort  *int   `yaml:"endPort,omitempty"`
}

// apiClusterPolicy is a ClusterNetworkPolicy, AdminNetworkPolicy or BaselineAdminNetworkPolicy.
type apiClusterPolicy struct {
	APIVersion string     `yaml:"apiVersion"`
	Kind       string     `yaml:"kind"`
	Metadata   apiMeta    `yaml:"metadata"`
	Spec       apiCluster `yaml:"spec"`
}

type apiCluster struct {
	Tier     string           `yaml:"tier,omitempty"`
	Priority *int             `yaml:"priority,omitempty"`
	Subject  apiClusterPeer   `yaml:"subject"`
	Ingress  []apiClusterRule `yaml:"ingress,omitempty"`
	Egress   []apiClusterRule `yaml:"egress,omitempty"`
}

type apiClusterRule struct {
	Name      string           `yaml:"name,omitempty"`
	Action    string           `yaml:"action"`
	From      []apiClusterPeer `yaml:"from,omitempty"`
	To        []apiClusterPeer `yaml:"to,omitempty"`
	Protocols *[]apiProtocol   `yaml:"protocols,omitempty"` // v1alpha2
	Ports     *[]apiAdminPort  `yaml:"ports,omitempty"`     // v1alpha1
}

type apiClusterPeer struct {
	Namespaces *apiSelector `yaml:"namespaces,omitempty"`
	Pods       *apiPods     `yaml:"pods,omitempty"`
	Nodes      *apiSelector `yaml:"nodes,omitempty"`
	Networks   []string     `yaml:"networks,omitempty"`
	Domains    []string     `yaml:"domainNames,omitempty"`
}

type apiPods struct {
	NamespaceSelector apiSelector `yaml:"namespaceSelector"`
	PodSelector       apiSelector `yaml:"podSelector"`
}

type apiProtocol struct {
	TCP       *apiDestination `yaml:"tcp,omitempty"`
	UDP       *apiDestination `yaml:"udp,omitempty"`
	SCTP      *apiDestination `yaml:"sctp,omitempty"`
	NamedPort string          `yaml:"destinationNamedPort,omitempty"`
}

type apiDestination struct {
	Port struct {
		Number int       `yaml:"number,omitempty"`
		Range  *apiRange `yaml:"range,omitempty"`
	} `yaml:"destinationPort"`
}

type apiRange struct {
	Protocol string `yaml:"protocol,omitempty"` // v1alpha1
	Start    int    `yaml:"start"`
	End      int    `yaml:"end"`
}

type apiAdminPort struct {
	Number *apiNumber `yaml:"portNumber,omitempty"`
	Range  *apiRange  `yaml:"portRange,omitempty"`
	Named  string     `yaml:"namedPort,omitempty"`
}

type apiNumber struct {
	Protocol string `yaml:"protocol,omitempty"`
	Port     int    `yaml:"port"`
}

// apiObjects is everything in a cluster that matters.
type apiObjects struct {
	namespaces map[string]map[string]string
	pods       []apiPod
	nodes      []apiNode
	policies   []apiNetworkPolicy
	cluster    []apiClusterPolicy
}

// decode reads manifests without any help of the package under test.
func decode(manifests []byte) (*apiObjects, error) {
	o := &apiObjects{namespaces: map[string]map[string]string{}}
	d := yaml.NewDecoder(bytes.NewReader(manifests))
	for {
		var n yaml.Node
		switch err := d.Decode(&n); {
		case errors.Is(err, io.EOF):
			return o, nil
		case err != nil:
			return nil, err
		}
		if err := o.add(&n); err != nil {
			return nil, err
		}
	}
}

func (o *apiObjects) add(n *yaml.Node) error {
	var head struct {
		APIVersion string      `yaml:"apiVersion"`
		Kind       string      `yaml:"kind"`
		Items      []yaml.Node `yaml:"items"`
	}
	if err := n.Decode(&head); err != nil {
		return err
	}
	if strings.HasPrefix(head.APIVersion, "bulkhead/") {
		return nil
	}
	switch head.Kind {
	case "":
	case "List":
		for i := range head.Items {
			if err := o.add(&head.Items[i]); err != nil {
				return err
			}
		}
	case "Namespace":
		var x apiNamespace
		if err := n.Decode(&x); err != nil {
			return err
		}
		o.namespaces[x.Metadata.Name] = x.Metadata.Labels
	case "Pod":
		var x apiPod
		if err := n.Decode(&x); err != nil {
			return err
		}
		o.pods = append(o.pods, x)
	case "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job":
		var x apiController
		if err := n.Decode(&x); err != nil {
			return err
		}
		p := apiPod{Metadata: x.Metadata, Spec: x.Spec.Template.Spec}
		p.Metadata.Labels = x.Spec.Template.Metadata.Labels
		o.pods = append(o.pods, p)
	case "Node":
		var x apiNode
		if err := n.Decode(&x); err != nil {
			return err
		}
		o.nodes = append(o.nodes, x)
	case "NetworkPolicy":
		var x apiNetworkPolicy
		if err := n.Decode(&x); err != nil {
			return err
		}
		o.policies = append(o.policies, x)
	case "ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy":
		var x apiClusterPolicy
		if err := n.Decode(&x); err != nil {
			return err
		}
		o.cluster = append(o.cluster, x)
	case "Service", "ConfigMap":
	default:
		return fmt.Errorf("the oracle knows no %s", head.Kind)
	}
	return nil
}
