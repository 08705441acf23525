"""Health data, read but never rewritten: FHIR R4 documents, their patient, and the categories they fall into.

Order of calls, for a document held in memory (`node.ingest`):

    kind = document_kind.detect(media_type, head, suffix)      what the file is; refuses what is not what it says
    document = fhir.parse_document(data)                       spans of every resource's own text
    subjects = identity.document_subjects(document)            whose it is; refuses a document of two patients
    sorted_ = views.sort(document)                             one category, or an original and its views
    for category, chunks in views.views(document, sorted_): …  each view, byte for byte from the document

and for NDJSON, line by line: `fhir.resources_of_line`, `identity.SubjectCollector`, `view_stream.StreamSorter`.

Glossary. *Resource*: a FHIR resource with its `resourceType`. *Span*: the half-open range of bytes of a value in the
text it was received in. *Category*: what consent is granted for (`categories.Category`). *Original*: the exact bytes
of a document that spans categories. *View*: a FHIR `collection` Bundle of the resources of one category, spliced from
their own text. *Follower*: Patient, Practitioner, PractitionerRole, Organization, Location; it has no category of its
own and goes along with the resources that name it.

Goals: numbers, order, white space and unknown elements survive (72.50 stays 72.50); nothing outside a resource's own
text is invented; refusals name place and reason, never content.

Non-goals: validation against FHIR profiles (a lenient reader keeps what hospitals really send) and certainty: sorting
by category is best effort, see `value_sets`.
"""
