package manifest

// shownBy says of each field of docs/pod-spec.md which tests show it; "- why"
// is what nobody on a node acts on, and "! why" what is refused of a type that
// is in no support table.
const shownBy = `
PodSpec
  volumes: test/node TestVolumesOfObjects, pkg/volumes TestContainerMounts
  initContainers: test/node TestInitContainersRunInOrder, pkg/podworker/lifecycle TestStartsInitContainersInOrderThenTheRest
  containers: test/node TestProcessAttributes, pkg/podworker TestPodRunsAndEndsWithoutTraces
  ephemeralContainers: test/node TestLives, pkg/podworker TestDebugContainerThatMountsMore
  restartPolicy: test/node TestRestartPolicies, pkg/podworker/lifecycle TestRestartPolicies
  terminationGracePeriodSeconds: pkg/podworker/lifecycle TestDeletionHonoursTheDeadlineAndLeavesNothing
  activeDeadlineSeconds: test/node TestLives, pkg/podworker TestActiveDeadline
  dnsPolicy dnsConfig hostname subdomain setHostnameAsFQDN hostnameOverride: test/node TestNamesAndResolvers, pkg/podworker TestNames
  hostAliases: test/node TestNamesAndResolvers, pkg/podworker TestHostsFile
  nodeSelector affinity: test/node TestObjects, pkg/podworker TestAdmission
  nodeName: pkg/manifest TestScenarios
  serviceAccountName serviceAccount automountServiceAccountToken: test/node TestSecurityContext, pkg/podworker TestServiceAccount
  hostNetwork: test/node TestHostNetworkAndHostPort
  hostPID hostIPC: test/node TestProcessAttributes
  shareProcessNamespace: test/node TestInitContainersRunInOrder
  securityContext: test/node TestSecurityContext
  tolerations: test/node TestKubectl, pkg/node TestTaints
  topologySpreadConstraints: - a scheduler's business; checked, kept and shown
  schedulerName: - there is one node to choose; kept and shown
  priorityClassName priority preemptionPolicy: pkg/podworker TestPriorityClass
  imagePullSecrets: pkg/images TestPullSecrets
  enableServiceLinks: pkg/podworker TestEnvironment
  readinessGates: test/node TestLives, pkg/status TestReadinessGates
  os: pkg/manifest TestScenarios
  hostUsers: test/node TestSecurityContext, pkg/podworker TestUserRanges
  resources: test/node TestNodeAllocatable, pkg/pod TestOwnResourcesInTheDownwardAPI
  runtimeClassName overhead: test/node TestSecurityContext, pkg/podworker TestRuntimeClass
Container
  name image command args workingDir tty: test/node TestProcessAttributes
  stdin stdinOnce: pkg/runtime TestContainerConfig
  imagePullPolicy: test/node TestPullPolicies
  ports: test/node TestHostNetworkAndHostPort
  env envFrom: test/node TestObjects, pkg/podworker TestEnvironment
  resources: test/node TestResources, pkg/cgroup TestPodLimits
  resizePolicy: test/node TestLives, pkg/podworker TestResize
  volumeMounts: test/node TestVolumesOfObjects, pkg/volumes TestContainerMounts
  volumeDevices: pkg/volumes TestBlockClaim
  terminationMessagePath terminationMessagePolicy: test/node TestTerminationMessage, pkg/podworker TestTerminationMessage
  securityContext: test/node TestSecurityContext, pkg/runtime TestSecurityConfig
  readinessProbe: test/node TestReadiness, pkg/podworker TestReadinessProbe
  livenessProbe: test/node TestLives, pkg/podworker TestLivenessProbe
  startupProbe: test/node TestLives, pkg/probe TestStartupGatesTheOthers
  lifecycle: test/node TestLives, pkg/podworker TestPostStartHook
  restartPolicy restartPolicyRules: test/node TestLives, pkg/podworker/lifecycle TestScenarios
ContainerPort
  name containerPort: pkg/probe TestHTTP
  protocol hostPort hostIP: test/node TestHostNetworkAndHostPort, pkg/podworker TestAdmission
ResourceRequirements
  limits requests: test/node TestResources, pkg/cgroup TestPodLimits
VolumeMount
  name mountPath readOnly mountPropagation recursiveReadOnly: pkg/volumes TestContainerMounts, pkg/runtime TestMountsToCRI
  subPath subPathExpr: test/node TestVolumesOfObjects, pkg/volumes TestSubPath
VolumeDevice
  *: pkg/volumes TestBlockClaim
Probe
  exec: pkg/probe TestExec
  httpGet: pkg/probe TestHTTP
  tcpSocket: pkg/probe TestTCP
  grpc: pkg/probe TestGRPC
  initialDelaySeconds periodSeconds: pkg/probe TestWait
  timeoutSeconds: pkg/probe TestHTTP
  successThreshold failureThreshold: pkg/probe TestThresholds
  terminationGracePeriodSeconds: pkg/podworker TestLivenessProbe
ExecAction
  *: pkg/probe TestExec
HTTPGetAction
  *: pkg/probe TestHTTP
HTTPHeader
  *: pkg/probe TestHTTP
TCPSocketAction
  *: pkg/probe TestTCP
GRPCAction
  *: pkg/probe TestGRPC
Lifecycle
  postStart: test/node TestLives, pkg/podworker TestPostStartHook
  preStop: test/node TestLives, pkg/podworker TestPreStopHook
  stopSignal: pkg/runtime TestContainerConfig
LifecycleHandler
  *: test/node TestLives, pkg/podworker TestPreStopHook
SleepAction
  *: pkg/podworker TestPreStopHook
ContainerRestartRule
  *: test/node TestLives, pkg/podworker/lifecycle TestScenarios
ContainerRestartRuleOnExitCodes
  *: test/node TestLives, pkg/podworker/lifecycle TestScenarios
ContainerResizePolicy
  *: test/node TestLives, pkg/podworker TestResize
PodReadinessGate
  *: test/node TestLives, pkg/status TestReadinessGates
PodOS
  *: pkg/manifest TestScenarios
PodDNSConfig
  *: test/node TestNamesAndResolvers
PodDNSConfigOption
  *: test/node TestNamesAndResolvers
HostAlias
  *: test/node TestNamesAndResolvers, pkg/podworker TestHostsFile
Toleration
  *: pkg/node TestTaints
PodSecurityContext
  fsGroup: pkg/volumes TestEmptyDirOfAGroup
  fsGroupChangePolicy: pkg/volumes TestFSGroupOfALocalVolume
  sysctls: test/node TestSecurityContext, pkg/podworker TestAdmission
  supplementalGroupsPolicy appArmorProfile: test/node TestSecurityContext, pkg/podworker TestAdmission
  seLinuxOptions seccompProfile: pkg/runtime TestSecurityConfig
  seLinuxChangePolicy: - to mount with a label needs a CSI driver; the runtime relabels, as with every kind of volume that is mounted here
  runAsUser runAsGroup runAsNonRoot supplementalGroups: test/node TestSecurityContext
Sysctl
  *: test/node TestSecurityContext
SecurityContext
  *: test/node TestSecurityContext, pkg/runtime TestSecurityConfig
SELinuxOptions
  *: pkg/runtime TestSecurityConfig
SeccompProfile
  *: test/node TestSecurityContext, pkg/runtime TestLocalhostSeccomp
AppArmorProfile
  *: pkg/runtime TestSecurityConfig
Capabilities
  *: test/node TestSecurityContext
EnvVar
  *: test/node TestObjects, pkg/podworker TestEnvironment
EnvVarSource
  *: test/node TestObjects, pkg/podworker TestEnvironment
ConfigMapKeySelector
  *: test/node TestObjects, pkg/podworker TestEnvironmentErrors
SecretKeySelector
  *: test/node TestObjects, pkg/podworker TestEnvironmentErrors
EnvFromSource
  *: test/node TestObjects, pkg/podworker TestEnvironment
ConfigMapEnvSource
  *: test/node TestObjects, pkg/podworker TestEnvironmentErrors
SecretEnvSource
  *: test/node TestObjects, pkg/podworker TestEnvironmentErrors
ObjectFieldSelector
  *: pkg/podworker TestEnvironment
ResourceFieldSelector
  *: pkg/podworker TestEnvironment
Affinity
  nodeAffinity: test/node TestObjects, pkg/podworker TestAdmission
  podAffinity podAntiAffinity: - a scheduler's business; checked, kept and shown
PodAffinity
  *: - a scheduler's business; checked, kept and shown
PodAntiAffinity
  *: - a scheduler's business; checked, kept and shown
WeightedPodAffinityTerm
  *: - a scheduler's business; checked, kept and shown
PodAffinityTerm
  *: - a scheduler's business; checked, kept and shown
TopologySpreadConstraint
  *: - a scheduler's business; checked, kept and shown
NodeAffinity
  requiredDuringSchedulingIgnoredDuringExecution: pkg/podworker TestAdmission
  preferredDuringSchedulingIgnoredDuringExecution: - a wish to a scheduler; kept and shown
PreferredSchedulingTerm
  *: - a wish to a scheduler; kept and shown
NodeSelector
  *: pkg/podworker TestAdmission
NodeSelectorTerm
  *: pkg/podworker TestAdmission
NodeSelectorRequirement
  *: pkg/podworker TestAdmission
Volume
  name: pkg/volumes TestContainerMounts
  hostPath: test/node TestHostPaths, pkg/volumes TestHostPath
  emptyDir: pkg/volumes TestEmptyDirOnDisk
  configMap: test/node TestVolumesOfObjects, pkg/volumes TestConfigMap
  secret downwardAPI: test/node TestVolumesOfObjects, pkg/volumes TestMemoryKinds
  projected: test/node TestVolumesOfObjects, pkg/volumes TestHalfProjected
  persistentVolumeClaim: test/node TestClaimsOfTheDeck, pkg/volumes TestClaims
  ephemeral: test/node TestClaimsOfTheDeck, pkg/volumes TestEphemeralClaim
  nfs: pkg/volumes TestNFS
  image: pkg/podworker TestImageVolume
HostPathVolumeSource
  *: test/node TestHostPaths, pkg/volumes TestHostPath
EmptyDirVolumeSource
  medium: pkg/volumes TestEmptyDirInMemory, pkg/volumes TestEmptyDirInHugePages
  sizeLimit: test/node TestSizeLimit
ConfigMapVolumeSource
  *: pkg/volumes TestConfigMap
SecretVolumeSource
  *: pkg/volumes TestMemoryKinds
KeyToPath
  *: pkg/volumes TestConfigMap
DownwardAPIVolumeSource
  *: pkg/volumes TestMemoryKinds
DownwardAPIVolumeFile
  *: pkg/volumes TestMemoryKinds
ProjectedVolumeSource
  *: pkg/volumes TestMemoryKinds
VolumeProjection
  *: pkg/volumes TestMemoryKinds
ConfigMapProjection
  *: pkg/volumes TestHalfProjected
SecretProjection
  *: pkg/volumes TestHalfProjected
DownwardAPIProjection
  *: pkg/volumes TestMemoryKinds
PersistentVolumeClaimVolumeSource
  *: pkg/volumes TestClaims, pkg/volumes TestReadOnlyClaim
EphemeralVolumeSource
  *: pkg/volumes TestEphemeralClaim
PersistentVolumeClaimTemplate
  *: pkg/volumes TestEphemeralClaim
PersistentVolumeClaimSpec
  *: pkg/claims TestMatching, test/node TestClaimsOfTheDeck
VolumeResourceRequirements
  *: pkg/claims TestMatching
LabelSelector
  *: pkg/claims TestMatching
LabelSelectorRequirement
  *: pkg/claims TestMatching
NFSVolumeSource
  *: pkg/volumes TestNFS
ImageVolumeSource
  *: pkg/podworker TestImageVolume
EphemeralContainer
  name image command args workingDir env envFrom imagePullPolicy stdin stdinOnce tty terminationMessagePath terminationMessagePolicy: test/node TestLives, test/node TestKubectl
  volumeMounts volumeDevices: pkg/podworker TestDebugContainerThatMountsMore
  securityContext: pkg/runtime TestSecurityConfig
  targetContainerName: test/node TestLives
  ports resources resizePolicy restartPolicy restartPolicyRules lifecycle livenessProbe readinessProbe startupProbe: ! Kubernetes refuses it here
PodStatus
  observedGeneration conditions: pkg/status TestReadinessGates
  phase: pkg/status TestPhaseAndContainers
  message reason: pkg/status TestRefusedPod
  hostIP hostIPs podIP podIPs: test/node TestDualStack, pkg/status TestAddresses
  startTime: pkg/podworker TestActiveDeadline
  initContainerStatuses containerStatuses: pkg/status TestPhaseAndContainers
  ephemeralContainerStatuses: pkg/status TestSidecarsAndEphemeralContainers
  qosClass: test/node TestCgroupsByQoS
  nominatedNodeName: - a scheduler writes it
  resize: - no longer written by anybody: conditions say it
  resourceClaimStatuses extendedResourceClaimStatus: - of dynamic resource allocation, which is refused
  allocatedResources resources: - of resources of the whole pod, which are refused
  nodeAllocatableResourceClaimStatuses: - of dynamic resource allocation, which is refused
  volumeHealth: - of CSI drivers, which are refused
PodCondition
  *: pkg/status TestReadinessGates
HostIP
  *: pkg/status TestAddresses
PodIP
  *: pkg/status TestAddresses
ContainerStatus
  allocatedResources resources volumeMounts user: pkg/status TestVolumeMountsAndResources
  allocatedResourcesStatus: - of device plugins, which are refused
  stopSignal: - alpha in v1.37 and off (ContainerStopSignals)
  *: pkg/status TestPhaseAndContainers
ContainerState
  *: pkg/status TestPhaseAndContainers
ContainerStateWaiting
  *: pkg/podworker TestImageProblemsShowAndOtherContainersRun
ContainerStateRunning
  *: pkg/status TestPhaseAndContainers
ContainerStateTerminated
  signal: - a runtime says nothing of it over CRI
  *: pkg/status TestWhatIsKept
VolumeMountStatus
  volumeStatus: - alpha in v1.37 and off (ImageVolumeWithDigest)
  *: pkg/status TestVolumeMountsAndResources
ContainerUser
  *: pkg/status TestVolumeMountsAndResources
LinuxContainerUser
  *: pkg/status TestVolumeMountsAndResources
`
