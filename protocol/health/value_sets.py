"""Which codes and words belong to which protected matter. Data only; `categories` applies it.

What the sets follow (each abridged to what general records hold, and widened where the published samples leak):

- HL7 v3 ActCode, information sensitivity policies: ETH, SUD, OPIOIDUD, ALC (substance use); HIV, STD, SEX, PREGNANT,
  SDV (sexual health); PSY, PSYTHPN, MH, BH, EMOTDIS, COGN, DVD (mental health).
- SAMHSA Consent2Share and ONC sensitive value sets: ICD-10-CM blocks, ATC and drug names per matter; 42 CFR part 2
  (which leaves tobacco out: smoking status is `general`).
- Gravity Project SDOH Clinical Care domains; screening instruments PRAPARE, AHC-HRSN, Hunger Vital Sign (`social`),
  PHQ-2, PHQ-9, GAD-7 (`mental-health`), AUDIT, AUDIT-C, DAST-10, TAPS (`substance-use`); IPS pregnancy value sets.
- ICPC-2 chapters P, W, X, Y, Z; ATC groups as marked.

Words are matched at the beginning of a word, in any case, in English with the commonest stems of the languages of the
IPS samples. They are chosen to err on the protected side; exceptions stand where the crude word would take something
vital out of an emergency view (benzyl alcohol allergy, respiratory depression, hearing aids).

Sorting is best effort: free text in another language, an image or a scanned letter tells this table nothing.
"""

import re
from typing import Final

SNOMED: Final = "snomed"
LOINC: Final = "loinc"
ICD10: Final = "icd10"
ICPC2: Final = "icpc2"
ATC: Final = "atc"
ACT_CODE: Final = "act-code"
US_CORE: Final = "us-core"

SYSTEMS: Final = (
    ("snomed", SNOMED),
    ("2.16.840.1.113883.6.96", SNOMED),
    ("loinc", LOINC),
    ("2.16.840.1.113883.6.1", LOINC),
    ("icd-10", ICD10),
    ("icd10", ICD10),
    ("cid10", ICD10),
    ("2.16.840.1.113883.6.90", ICD10),
    ("2.16.840.1.113883.6.3", ICD10),
    ("2.16.840.1.113883.6.4", ICD10),
    ("1.2.276.0.76.5.3", ICD10),
    ("icpc", ICPC2),
    ("brciap2", ICPC2),
    ("2.16.840.1.113883.2.4.4.31.1", ICPC2),
    ("2.16.840.1.113883.6.139", ICPC2),
    ("whocc", ATC),
    ("2.16.840.1.113883.6.73", ATC),
    ("v3-actcode", ACT_CODE),
    ("us-core-category", US_CORE),
    ("us-core/codesystem", US_CORE),
)
"""Pieces of a `Coding.system` in lower case, and the code system they stand for. An object identifier stands for its
system only as a whole, `urn:oid:` before it taken off. Codes of ICD-10 and ICPC-2 are compared without dots."""


def _words(*stems: str) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(stems) + ")", re.IGNORECASE)


# --- substance use: v3 ActCode ETH, SUD; ICD-10 F10-F19 without tobacco; 42 CFR part 2 ---------------------------
SUBSTANCE_USE_CODES: Final = {
    SNOMED: """
        55680006 361055000 1149222004 66214007 5602001 6525002 7200002 191816009 228366006 228367002 228368007
        56876005 61480009 60112009 266707007 24165007 226138001 219006 105542008 35748005 160573003
        713106006 763302001 428211000124100
    """,
    LOINC: """
        72109-2 68517-2 68518-0 68519-8 68520-6 75626-2 74013-4 80439-3 88037-7 75889-6 96841-2 96842-0 96843-8
        96844-6 96845-3 82666-9 82667-7 11331-6 11343-1 74205-6 72110-0 68516-4 96792-7 46680-0 70184-6 69721-9
        5643-2 5640-8 3426-4 3397-7 19295-5 8220-1 12286-1
    """,
    ACT_CODE: "ETH ETHUD SUD OPIOIDUD ALC DRGIS",
}
SUBSTANCE_USE_PREFIXES: Final = {
    ICD10: "F10 F11 F12 F13 F14 F15 F16 F18 F19 T40 X42 X62 Y12 K70 R780 Z714 Z715 Z721 Z722 HZ O9931 P961 G621",
    ICPC2: "P15 P16 P18 P19",
    ATC: "N07BB N07BC",
}
SUBSTANCE_USE_WORDS: Final = _words(
    r"(?<!benzyl )(?<!isopropyl )(?<!rubbing )(?<!cetyl )(?<!stearyl )(?<!cetostearyl )(?<!polyvinyl )(?<!wool )"
    r"(?<!lanolin )(?<!denatured )(?<!non-)alcohol(?![- ](?:swab|wipe|pad|prep|rub|gel|hand|based|dehydrogenase))",
    r"alkohol(?!frei)",
    r"al[ck]oolism",
    r"drunk|binge drink|drinker|drinking (?:problem|behaviou?r|habit)|(?:or )?more drinks\b|drinks (?:in|per|on|a) ",
    r"opioid(?! (?:analges|agonist|receptor|deriv|antitussiv|prepar|allerg))",
    r"(?:substance|drug|opiate|medication|sedative|cannabis|narcotic)s?[- ](?:use disorder|(?:mis)?abus|misus|addict|"
    r"depend|rehab|detox|overdos|withdrawal|intoxicat|poison|taking behav)",
    r"substance use",
    r"(?:illegal|illicit|recreational|street|inject\w+|intravenous|iv) drugs?(?: us|\b(?! (?:product|form)))",
    r"misused? (?:of )?drugs|drugs? of abuse|drug (?:screen|of abuse)",
    r"addict|overdos|detoxification|intoxicat|delirium tremens|fetal alcohol|sobriety|12[- ]step",
    r"heroin\b|cocain|crack cocaine|methamphet|cannabis|cannabin|marij|ecstasy|fentanyl (?:misuse|abuse)|\bLSD\b",
    r"methadon|buprenorphin|suboxone|subutex|naltrexon|naloxon|narcan|vivitrol|disulfiram|antabuse|acamprosat|"
    r"lofexidin|nalmefen",
    r"AUDIT-C|DAST-10|(?-i:TAPS\b)|alcoholics anonymous|narcotics anonymous",
    r"verslav|drogen|toxicoman|drogu?(?:e|as)\b|middelengebruik",
)

# --- sexual health: v3 ActCode HIV, STD, SEX, PREGNANT, SDV; Consent2Share "sexuality and reproductive health" -----
SEXUAL_HEALTH_CODES: Final = {
    SNOMED: """
        31676001 310861008 165829005 269828009 86406008 62479008 165816005 72892002 77386006 118185001 424441002
        424619006 169762003 183460006 134435003 135892000 312404004 713076009 10383002 714812005
        386394001 5880005 68254000 252160004 66348005 225158009 271442007 274804006 443529005 169230002 398254007
        19169002 35999006 65147003 47200007 79586000 169553002 65200003 301807007
        287664005 22523008 169690007 271442007 177157003
        236974004 11466000 85548006 237001001 446141000124107
    """,
    LOINC: """
        55277-8 82810-3 76690-7 76691-5 10162-6 11636-8 11637-6 11638-4 11639-2 11640-0 11612-9 11613-7 11614-5
        33065-4 11778-8 11779-6 11780-4 8678-5 8665-2 42840-9 75325-1 7917-8 5220-9 29893-5 30361-0 56888-1 25836-8
        20447-9 69668-2 24467-3 43304-5 43305-2 21613-5 24111-7 6357-8 20507-0 31147-2 5292-8 2106-3 2110-5 2118-8
        19080-1 21198-7 86646-7 86645-9 86647-5 86649-1
    """,
    ACT_CODE: "HIV STD SEX PREGNANT SDV MST",
}
SEXUAL_HEALTH_PREFIXES: Final = {
    ICD10: (
        "A50 A51 A52 A53 A54 A55 A56 A57 A58 A59 A60 A63 A64 B20 B21 B22 B23 B24 Z21 Z113 Z114 Z202 Z206 Z725 "
        "R75 O Z30 Z31 Z32 Z33 Z34 Z35 Z36 Z37 Z38 Z39 Z3A N46 N97 N52 F52 F64 F65 F66 T742 T762 Z87890 Z793"
    ),
    ICPC2: "W B90 X02 X10 X11 X12 X13 X14 X23 X24 X70 X71 X73 X90 X91 X92 Y04 Y07 Y08 Y10 Y13 Y14 Y25 Y70 Y71 Y72 Y76 "
    "P07 P08 P09",
    ATC: "G02B G03A G03D J05AE J05AG J05AJ J05AR J05AX12 J05AF01 J05AF09",
}
SEXUAL_HEALTH_WORDS: Final = _words(
    r"hiv(?:[- ]?[12])?\b|vih\b|human immuno[- ]?deficiency|acquired immun|(?<!HEARING )(?-i:AIDS\b)|antiretrovir",
    r"chlamydia(?! (?:pneumoniae|psittaci|ph))|gonor|gonococ|syphili|treponem|trichomon|lues\b|condylom",
    r"genital (?:herp|wart)|herpes (?:simplex )?genital|venereal|human papilloma",
    r"sexual|sexuell|sexuali|rape\b|transgender|transsex|gender (?:dysphor|identit|reassign|incongr|affirm)",
    r"female gender|male gender|erectile|libido|vasectom|tubal (?:ligat|occlus|steril)|sterili[sz]ation (?:of|proced)",
    r"contracep|birth control|intra[- ]?uterine|iud\b|(?:21|28|84|91) day pack|mirena\b|kyleena|liletta|skyla\b|"
    r"implanon|nexplanon|nuvaring|verh[uü]tung|antikoncep|anticoncep",
    r"ethinyl ?estradiol|norgest|levonorgest|norelgestrom|drospirenon|etonogestr|desogestr|norethindron|norethister|"
    r"medroxyprogest|mestranol|ulipristal|mifepriston|misoprost",
    r"\w*tegravir|emtricitab|lamivudin|tenofovir|efavirenz|rilpivir|darunavir|atazanavir|lopinavir|abacavir|zidovud|"
    r"maraviroc|nevirapin|etravirin|cobicistat|biktarvy|dovato|truvada|descovy|genvoya|triumeq",
    r"pregnan|prenatal|antenatal|perinatal|postnatal|post[- ]?partum|obstetri|maternity|midwi|gestation|gravid|"
    r"abort(?!ive|ed\b)|miscarr|still(?:birth|born)|childbirth|following birth|live birth|births total|parity\b|parturi",
    r"eclamp|preeclamp|pre-eclamp|hyperemesis|ectopic preg|blighted ovum|placent|amnio|episiotom|c(?:a?e)sarean|"
    r"fo?etal|fo?etus|uterine fund|termination of|in vitro fertili|infertil|examination of mother|breast ?feeding|"
    r"augmentation of labou?r|instrumental delivery|induction of labou?r",
    r"schwanger|zwanger|embaraz|grossesse|gravidanz|enceinte|sexual-|geslachtsziek|geschlechtskrank",
)

# --- mental health: v3 ActCode PSY, MH, BH, COGN, DVD; ICD-10 chapter F ------------------------------------------
MENTAL_HEALTH_CODES: Final = {
    SNOMED: """
        35489007 370143000 36923009 231504006 48694002 197480006 171207006 406506008 192127007 386522008 405783006
        408467006 26929004 230265002 52448006 429998004 386257007 850261000000100 47505003 58214004 13746004 191736004
        6471006 82313006 225444004 710841007 715252007 454711000124102 35919005 17226007 69322001
        267073005
    """,
    LOINC: """
        44249-1 44250-9 44251-7 44252-5 44253-3 44254-1 44255-8 44256-6 44257-4 44258-2 44259-0 44260-8 44261-6
        55757-9 55758-7 69722-7 69723-5 69724-3 69725-0 70274-6 70273-8 69737-5 94023-9 89204-2 89208-3 73831-0
        73832-8 71354-5 72106-8 72172-0 93267-3
    """,
    ACT_CODE: "PSY PSYTHPN MH BH EMOTDIS COGN DVD",
}
MENTAL_HEALTH_PREFIXES: Final = {
    ICD10: "F G30 G310 X60 X61 X63 X64 X65 X66 X67 X68 X69 X7 X80 X81 X82 X83 X84 T1491 R45 Z915 Z133 Z865 Z818",
    ICPC2: "P",
    ATC: "N05A N05B N06A N06BA N06D",
}
TOBACCO_PREFIXES: Final = {ICD10: "F17 Z720 Z87891", ICPC2: "P17"}
MENTAL_HEALTH_WORDS: Final = _words(
    r"(?<!respiratory )(?<!breathing )(?<!\bst )(?<!segment )(?<!marrow )(?<!cns )(?<!myocardial )"
    r"depress(?:ion|iv|ed(?! (?:skull|fract))|ie\b|ão|ión)|depresi|dépress|dysthym|anti-?depress",
    r"suicid|suizid|zelfmoord|self[- ](?:harm|injur)|better off dead|parasuicid",
    r"anxiet|anxious (?:mood|person)|anxiolyt|ansiedad|angstst|panic|phobi|obsessive[- ]comp|post[- ]?traumatic|ptsd\b|"
    r"stress disorder|adjustment disorder|mood (?:disorder|stab)|affective disorder|burn-?out",
    r"schizo|psychos[ei]|psychot|psychia|psycholog|psychisch|psychopat|psiqui|antipsychot|delusion|hallucinat|"
    r"paranoi|mania\b|manic\b|hypoman",
    r"bipolar(?! (?:hemi|electro|caut|diath|prosth|lead|pac|forc|hip|trans|resec|arthro))",
    r"mental (?:health(?!, vision)|stat(?:e|us)|disord|ill|state|retard|and behav)|mentally ill|behaviou?ral health|emotional dist",
    r"dementi?a|demenz|démence|demential|alzheimer|cognitive (?:impair|declin|behav)|memory clinic",
    r"autis|asperger|attention[- ]deficit|adhd\b|inattent|overactivity|hyperkinetic|conduct disorder|tourette|"
    r"intellectual disab|learning disab",
    r"anorexia nervosa|bulimi|eating disorder|personality disorder|dissociativ|somatoform|electroconvulsive|PHQ-?[29]|"
    r"GAD-?7|nightmare disorder|gaming disorder",
    r"sertralin|fluoxetin|paroxetin|citalopram|escitalopr|venlafax|duloxet|mirtazap|bupropion|trazodon|amitriptyl|"
    r"nortriptyl|clomipram|imipram|vortioxet|lithium (?:carb|cit)|clozap|olanzap|quetiap|risperid|paliperid|aripipr|"
    r"ziprasid|lurasid|haloperid|chlorpromaz|alprazol|buspiron|lorazep|methylphenid|atomoxet|lisdexam|dexamfet|"
    r"dextroamphet|amphetamine|donepez|memantin|galantam|rivastig|ritalin|prozac|zoloft|concerta|adderall|remeron",
)

# --- social: Gravity Project domains; PRAPARE, AHC-HRSN, Hunger Vital Sign ---------------------------------------
SOCIAL_CODES: Final = {
    SNOMED: """
        32911000 73438004 160903007 160904001 224299000 224295006 105535002 422650009 423315002 424393004 706893006
        446654005 713458007 160695008 406156006 467771000124109 410606002 445281000124101
        5251000175109 266934004 10939881000119105 73595000 80943009 105531004 315043002 473461003 866148006 224355006 1184702004
        551731000124103 611551000124100 454061000124102 151701000146105 303186005
        414418009
    """,
    LOINC: """
        93025-5 93026-3 93027-1 93028-9 93029-7 93030-5 93031-3 93033-9 93034-7 93035-4 93036-2 93037-0 93038-8 93039-6
        93040-4 93041-2 93042-0 93043-8 93044-6 93046-1 54899-0 56051-6 56799-0 63512-8 63586-2 67875-5 71802-3 76437-3
        76501-6 82589-3 32624-9 88121-9 88122-7 88123-5 88124-3 96777-8 96778-6 96779-4 96780-2 96781-0 96782-8
        95618-5 95617-7 95616-9 95615-1 95614-4 28245-9 11341-5 21843-8 63503-7 63513-6 80974-5 93159-2 93030-5
        76513-1 74165-2 76506-5 97023-6 97027-7 98975-6 98976-4 98977-2 98978-0 99134-9
    """,
    US_CORE: "sdoh",
    ACT_CODE: "VIO SDOH",
}
SOCIAL_PREFIXES: Final = {
    ICD10: "Z55 Z56 Z57 Z58 Z59 Z60 Z61 Z62 Z63 Z64 Z65 Z75 T74 T76 Y07 Z69 Z9141",
    ICPC2: "Z",
}
SOCIAL_WORDS: Final = _words(
    r"homeless|housing|unhoused|sheltered\b|eviction|obdachlos|dakloos|sans-abri|sin hogar|mortgage|utilities\b",
    r"food (?:insec|pantr|secur|bank|stamp|desert|we bought|would run)|hunger\b|limited access to health|"
    r"inadequate food|lack of food|malnourish\w* due to pov",
    r"transport(?!er)|employ(?:ment|ed\b)|unemploy|labou?r force|arbeitslos|werkloos|job loss|laid off|armed forces|"
    r"veteran|migrant|asylum|refugee|immigrat|undocumented person",
    r"low income|income\b|poverty|financial (?:strain|hard|insec|probl|resour)|material hardship|uninsured|debt\b|"
    r"social (?:isol|supp|serv|contact|determ|insec|work|exclus|care|depriv|integrat|welfare)|lives? alone|lonel",
    r"jail\b|prison|incarcer|criminal rec|detention|probation|parole\b|custody of|legal guard",
    r"violen|intimate partner|domestic abuse|abuse status|child abuse|elder abuse|neglect of|victim of (?!motor|traffic)|physically abus|"
    r"bully|discriminat|partner abuse|safe at home|feel(?:ing)? safe",
    r"high school|illitera|educated to|education level|level of education|higher education|school dropout|"
    r"PRAPARE|AHC[- ]HRSN|(?-i:HVS\b)|(?-i:SDOH\b)",
)

# --- the plainer categories -----------------------------------------------------------------------------------------
IMAGING_CODES: Final = {
    LOINC: "LP29684-5 18748-4 18726-0 68604-8",
    SNOMED: "363679005 394914008 399208008 169069000 241439007 371527006",
}
IMAGING_WORDS: Final = _words(
    r"x[- ]?ray|plain (?:chest )?radiogr|radiograph|radiolog|roentgen|röntgen|ultraso|sonogra|echocardiogra|"
    r"tomogra|mammogra|angiogra|arteriogra|fluorosc|scintigra|densitometr|magnetic resonance|diagnostic imaging",
    r"(?-i:MRI\b|CT\b|DXA\b|DEXA\b|PET\b|US (?:aorta|abdom|pelvi|thyroid|breast))",
)
LABS_CODES: Final = {
    LOINC: "26436-6 LP29693-6 LP7839-6 11502-2",
    SNOMED: "108252007 394595002 15220000",
}
