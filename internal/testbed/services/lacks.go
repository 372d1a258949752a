package services

// Lack is what a backend cannot have by nature. The notes below the table in
// docs/services.md begin with these words, and say why.
type Lack string

// What a backend may lack.
const (
	ClientAddress Lack = "endpoints see the client's address"
	Survival      Lack = "connections and affinity survive the agent"
	LoopbackPorts Lack = "node ports on 127.0.0.1"
	NewChoice     Lack = "a client whose affinity has ended may be sent elsewhere"
	EmptyRanges   Lack = "who is out of the source ranges is dropped where the others are refused"
	SCTP          Lack = "SCTP"
	DrainingFlow  Lack = "UDP flows stay with a terminating endpoint"
	// No row of the suite asks for these, so none leaves them out.
	OtherPorts   Lack = "other ports of a Service's address reach nobody"
	LeavingPorts Lack = "ports of a load balancer or external IP that no Service has leave the node"
	MarkedClient Lack = "affinity with its timeout at node ports, and from within with policy Local"
	RemovedConns Lack = "connections of a removed Service go on"
)

// Lacks are those of each backend that has any. Its tests leave them out.
var Lacks = map[string][]Lack{
	"ipvs":      {LoopbackPorts, NewChoice, LeavingPorts, MarkedClient},
	"userspace": {ClientAddress, Survival, EmptyRanges, SCTP, OtherPorts, DrainingFlow, RemovedConns},
}
