"""Sentences of the phantom's reports, which state, deny, doubt or recall an abnormality.

Their fields: {where} the lobes, {first} the first of them, {lungs} "both lungs" or one, {hemi} the hemithorax, {side} "right",
"left" or "bilateral", {mm} and {cm} the largest size, {mm2} its shorter axis, {list} the names of the places.
"""

from __future__ import annotations

STATED: dict[str, tuple[str, ...]] = {
    "Medical material:pacemaker": (
        "Cardiac pacemaker is observed in the left chest wall and its electrodes extend to the right ventricle.",
        "A pacemaker and its leads are seen on the left.",
        "Pacemaker battery under the skin of the left hemithorax and electrode reaching the right heart cavities.",
    ),
    "Medical material:port": (
        "A port catheter extending from the right subclavian vein to the superior vena cava was observed.",
        "The port chamber was observed on the right chest wall; the catheter tip is in the vena cava superior.",
        "There is a central venous port catheter on the right.",
    ),
    "Medical material:sternotomy": (
        "Metallic suture materials secondary to sternotomy are observed in the sternum.",
        "There are sternotomy wires and clips in the anterior mediastinum secondary to previous bypass surgery.",
        "Metallic sutures were observed secondary to previous surgery on the sternum.",
    ),
    "Arterial wall calcification": (
        "Calcific atheroma plaques are observed in the {list}.",
        "There are calcified atheromatous plaques in the wall of the thoracic aorta, most prominent in the {list}.",
        "Coarse wall calcifications were seen in the {list}.",
        "Diffuse calcific plaques are present on the wall of the {list}.",
    ),
    "Cardiomegaly": (
        "Heart size increased.",
        "The cardiothoracic ratio increased in favor of the heart.",
        "Heart size is larger than normal (cardiomegaly).",
        "Cardiomegaly is observed.",
        "An increase in heart size was observed, most prominent in the left ventricle.",
    ),
    "Pericardial effusion": (
        "Pericardial effusion reaching {mm} mm in thickness was observed.",
        "There is pericardial effusion measuring {mm} mm at its thickest point.",
        "Effusion of {mm} mm is observed in the pericardial space.",
        "Fluid surrounding the heart is present in the pericardial space, {cm} cm thick.",
    ),
    "Coronary artery wall calcification": (
        "Calcific plaques are observed in the coronary arteries ({list}).",
        "There are calcified atheroma plaques in the {list} and coronary artery walls.",
        "Coronary artery calcifications were observed in the {list}.",
        "Dense calcific atheromatous plaques are present in the coronary arteries.",
    ),
    "Hiatal hernia": (
        "Sliding type hiatal hernia is observed at the lower end of the esophagus.",
        "A hiatal hernia of approximately {mm} mm containing air and fluid was observed behind the heart.",
        "There is a type 1 hiatal hernia in the distal esophagus, {cm} cm in size.",
        "Part of the stomach is herniated into the thorax through the hiatus (hiatal hernia).",
    ),
    "Lymphadenopathy": (
        "Multiple lymphadenopathies are observed in the {list} areas, the largest measuring {mm}x{mm2} mm.",
        "There are multiple LAPs in the mediastinum, including {list}, the largest {mm} mm in short axis.",
        "Enlarged lymph nodes in pathological dimensions were detected at {list} levels, the largest {mm}x{mm2} mm.",
        "Pathologically enlarged mediastinal lymph nodes reaching {mm} mm in diameter are seen ({list}).",
    ),
    "Emphysema": (
        "Emphysematous changes are observed in both lungs, more prominent in the upper lobes.",
        "There are {kind} emphysema areas in the upper lobes of both lungs.",
        "Diffuse {kind} emphysematous changes in both lungs are noted, evident in the apical parts.",
        "Marked emphysema is present in both upper lobes.",
    ),
    "Atelectasis": (
        "Linear atelectasis areas are observed in the {where}.",
        "There are subsegmental atelectatic changes in the {where}.",
        "Band-shaped atelectasis was observed in the {where}.",
        "Plate-like atelectasis with slight volume loss is seen in the {where}.",
    ),
    "Lung nodule": (
        "Multiple solid nodules are observed in {lungs}, the largest of which is {mm} mm in diameter in the {first}.",
        "There are numerous parenchymal nodules, the largest measuring {mm}x{mm2} mm, in the {where}.",
        "Many well-circumscribed pulmonary nodules were detected in {lungs}; the largest is {mm} mm in the {first}.",
        "Nodules with smooth contours up to {mm} mm are seen in the {where}.",
    ),
    "Lung opacity": (
        "Patchy ground glass densities are observed in the {where}.",
        "There are ground-glass areas in the {where}, the largest {cm} cm in size.",
        "Ground glass opacities were observed in the {where}.",
        "Patchy density increases in the form of frosted glass are seen in {lungs}, most prominent in the {first}.",
    ),
    "Pleural effusion": (
        "There is {side} pleural effusion reaching {mm} mm in thickness.",
        "Pleural effusion measuring {cm} cm in its thickest part was observed in {hemi}.",
        "Free pleural fluid is observed in {hemi}, with a depth of {mm} mm.",
        "{Side} pleural effusion is present.",
    ),
    "Mosaic attenuation pattern": (
        "A mosaic attenuation pattern is observed in both lungs (small airway disease? small vessel disease?).",
        "There is a mosaic attenuation pattern in both lung parenchyma.",
        "Mosaic perfusion is present in both lungs.",
        "Geographic areas of differing density were seen in both lungs, evaluated as mosaic attenuation.",
    ),
    "Consolidation": (
        "Consolidation areas with air bronchograms are observed in the {where}.",
        "There is patchy consolidation in the {where}, {cm} cm in size, with ill-defined borders.",
        "Pleural-based consolidations were observed in the {where}.",
        "Consolidated lung segments in which air bronchogram signs are seen in the {where}.",
    ),
    "Pneumothorax": (
        "Pneumothorax is observed on the {side}, {mm} mm at its widest point.",
        "There is a {side} pneumothorax with partial collapse of the lung.",
        "Free air measuring {cm} cm is seen in the {side} pleural space, consistent with pneumothorax.",
    ),
    "Lung cyst": (
        "Thin-walled air cysts are observed in the {where}, the largest {mm} mm in diameter.",
        "There are pulmonary cysts in {lungs}, the largest measuring {mm}x{mm2} mm in the {first}.",
        "A thin-walled parenchymal lung cyst of {cm} cm was observed in the {first}.",
    ),
    "Lung mass": (
        "A mass lesion of {mm}x{mm2} mm with spiculated contours is observed in the {first}.",
        "There is a lobulated solid lung mass measuring {mm} mm in the {first}.",
        "In the {first}, a {cm} cm mass with irregular borders was detected (primary lung malignancy?).",
    ),
    "Pneumomediastinum": (
        "Free air is observed in the mediastinum, consistent with pneumomediastinum.",
        "There is pneumomediastinum: air densities surround the heart and the great vessels.",
        "Air dissecting the mediastinal fatty planes was observed (mediastinal emphysema, pneumomediastinum).",
    ),
}

CONCLUDED: dict[str, tuple[str, ...]] = {
    "Medical material:pacemaker": ("Cardiac pacemaker.", "Pacemaker on the left chest wall."),
    "Medical material:port": ("Port catheter on the right.", "Central venous port catheter."),
    "Medical material:sternotomy": ("Metallic sternotomy sutures.", "Sternotomy wires secondary to bypass surgery."),
    "Arterial wall calcification": ("Calcific atheroma plaques in the aorta.", "Aortic wall calcifications."),
    "Cardiomegaly": ("Cardiomegaly.", "Increased heart size."),
    "Pericardial effusion": ("Pericardial effusion.", "Pericardial effusion of {mm} mm."),
    "Coronary artery wall calcification": (
        "Calcific plaques in the coronary arteries.",
        "Coronary artery wall calcifications.",
    ),
    "Hiatal hernia": ("Hiatal hernia.", "Sliding type hiatal hernia."),
    "Lymphadenopathy": ("Mediastinal lymphadenopathies.", "Multiple mediastinal and hilar LAPs."),
    "Emphysema": ("Emphysematous changes in both lungs.", "Emphysema, prominent in the upper lobes."),
    "Atelectasis": ("Atelectatic changes in the {where}.", "Linear atelectasis."),
    "Lung nodule": ("Nodules in {lungs}.", "Multiple pulmonary nodules, follow-up is recommended."),
    "Lung opacity": (
        "Ground glass densities in {lungs}.",
        "Patchy ground-glass opacities; clinical correlation is recommended.",
    ),
    "Pleural effusion": ("{Side} pleural effusion.", "Pleural effusion in {hemi}."),
    "Mosaic attenuation pattern": ("Mosaic attenuation pattern in both lungs.", "Mosaic perfusion in both lungs."),
    "Consolidation": ("Consolidation in the {where}.", "Areas of consolidation in {lungs} (infection?)."),
    "Pneumothorax": ("{Side} pneumothorax.",),
    "Lung cyst": ("Thin-walled cysts in {lungs}.", "Air cysts in the {where}."),
    "Lung mass": ("Mass in the {first}.", "Lung mass in the {first}; histopathological verification is recommended."),
    "Pneumomediastinum": ("Pneumomediastinum.",),
}

DENIED: dict[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    # section -> (abnormalities that must be absent, sentence)
    "heart": (
        (("Cardiomegaly",), "Heart contour, size are normal."),
        (("Cardiomegaly",), "Mediastinal main vascular structures, heart contour, size are normal."),
        (("Cardiomegaly",), "Heart size and cardiac cavities have a natural appearance."),
        (("Cardiomegaly",), "The cardiothoracic ratio is within normal limits."),
        (("Pericardial effusion",), "Pericardial effusion-thickening was not observed."),
        (("Pericardial effusion",), "Pericardial effusion was not detected."),
        (("Pericardial effusion",), "No pericardial effusion or thickening is seen."),
        (("Coronary artery wall calcification",), "No calcification was detected in the coronary arteries."),
        (("Arterial wall calcification",), "No atheroma plaque is observed in the wall of the thoracic aorta."),
        (
            ("Arterial wall calcification", "Coronary artery wall calcification"),
            "No vascular wall calcification was observed in the aorta or coronary arteries.",
        ),
        (("Medical material",), "No catheter or pacemaker is observed."),
    ),
    "mediastinum": (
        (
            ("Lymphadenopathy",),
            "No enlarged lymph nodes were detected in mediastinal, hilar or axillary pathological dimensions.",
        ),
        (("Lymphadenopathy",), "No lymph node in pathological size and appearance was observed in the mediastinum."),
        (("Lymphadenopathy",), "Mediastinal and bilateral hilar lymphadenopathy was not observed."),
        (("Lymphadenopathy",), "Pathological LAP was not detected in both axillary regions and mediastinum."),
        (("Hiatal hernia",), "No hiatal hernia was observed."),
        (("Hiatal hernia",), "Thoracic esophagus calibration was normal and hiatal hernia was not detected."),
        (("Pneumomediastinum",), "There is no pneumomediastinum."),
    ),
    "lungs": (
        (
            (
                "Lung nodule",
                "Lung opacity",
                "Consolidation",
                "Lung mass",
                "Emphysema",
                "Atelectasis",
                "Mosaic attenuation pattern",
                "Lung cyst",
            ),
            "Aeration of both lung parenchyma is normal and no nodular or infiltrative lesion is detected.",
        ),
        (("Lung nodule", "Lung mass"), "No nodule or mass was detected in both lungs."),
        (("Lung nodule",), "No parenchymal nodule was observed."),
        (("Lung mass",), "No mass lesion with distinguishable borders was detected in both lungs."),
        (("Lung opacity", "Consolidation"), "There is no ground glass density or consolidation in the lungs."),
        (("Consolidation",), "Consolidation was not observed."),
        (("Lung opacity",), "No ground glass opacity was detected."),
        (("Emphysema",), "No emphysematous change is seen."),
        (("Emphysema", "Lung cyst"), "Emphysema, air cysts or bullae were not observed."),
        (("Atelectasis",), "No atelectasis was detected."),
        (("Mosaic attenuation pattern",), "A mosaic attenuation pattern was not observed."),
        ((), "No bronchiectasis was observed."),
        ((), "No peribronchial thickening or interlobular septal thickening was detected."),
    ),
    "pleura": (
        (("Pleural effusion",), "Pleural effusion-thickening was not detected."),
        (("Pleural effusion",), "No pleural effusion or thickening is seen in either hemithorax."),
        (("Pleural effusion", "Pneumothorax"), "Bilateral pleural effusion or pneumothorax was not detected."),
        (("Pneumothorax",), "No pneumothorax was observed."),
    ),
}

DOUBTED: dict[str, tuple[str, ...]] = {
    "Lung nodule": ("Due to motion artifacts a small nodule cannot be excluded.",),
    "Consolidation": ("Early consolidation cannot be excluded at the bases because of breathing artifact.",),
    "Lymphadenopathy": ("Hilar lymphadenopathy cannot be excluded in this non-contrast examination.",),
    "Pericardial effusion": ("A slight pericardial effusion cannot be excluded.",),
    "Hiatal hernia": ("The distal esophagus is not fully assessable (hiatal hernia?).",),
    "Pleural effusion": ("The costophrenic sinuses are blurred by motion (pleural effusion?).",),
    "Mosaic attenuation pattern": ("Aeration could not be evaluated optimally in expiration (mosaic attenuation?).",),
    "Emphysema": ("The apices are not optimally assessed (emphysema?).",),
    "Lung mass": ("A central mass cannot be excluded without contrast.",),
    "Atelectasis": ("Minimal atelectasis cannot be excluded at the bases.",),
}

REMEMBERED: dict[str, tuple[str, ...]] = {
    "Pneumothorax": ("The pneumothorax observed in the previous examination is no longer observed.",),
    "Pleural effusion": ("The previously seen pleural effusion has completely regressed.",),
    "Consolidation": (
        "The consolidation observed in the previous examination was not detected in the current examination.",
    ),
    "Lung opacity": ("Ground glass areas seen in the previous examination have resolved.",),
    "Lung nodule": ("The previously described nodule is no longer observed.",),
    "Lung mass": ("It was learned that the mass in the right upper lobe was removed previously.",),
    "Hiatal hernia": ("The patient was previously operated for hiatal hernia.",),
    "Pericardial effusion": ("The pericardial effusion seen in the previous examination is no longer observed.",),
    "Atelectasis": ("Atelectasis described in the previous examination is no longer observed.",),
    "Lymphadenopathy": ("Mediastinal lymphadenopathies seen in the previous examination are no longer observed.",),
    "Medical material": ("The previously seen port catheter has been removed.",),
    "Mosaic attenuation pattern": ("The mosaic attenuation seen in the previous examination is no longer observed.",),
}

AIRWAYS = (
    "Trachea, both main bronchi are open.",
    "Trachea and both main bronchi were in the midline and no obstructive pathology was observed in the lumen.",
    "Trachea and main bronchi are open and of normal calibration.",
)
VESSELS = (
    "Calibration of the mediastinal main vascular structures is natural.",
    "Thoracic aorta diameter is normal.",
    "The diameters of the aorta and pulmonary arteries are within normal limits.",
    "Mediastinal structures could not be evaluated optimally in the non-contrast examination.",
)
WINDOW = (
    "When examined in the lung parenchyma window;",
    "In the evaluation of both lung parenchyma;",
)
ABDOMEN = (
    "Upper abdominal organs included in the sections are normal.",
    "No space-occupying lesion was detected in the liver that entered the cross-sectional area.",
    "Bilateral adrenal glands were normal and no space-occupying lesion was detected.",
    "A 9 mm hypodense lesion is observed in the right lobe of the liver (cyst?).",
    "Liver density decreased in line with steatosis.",
    "A millimetric stone is observed in the gallbladder.",
    "The spleen and the pancreas have a natural appearance.",
    "An accessory spleen of 11 mm is observed.",
)
BONES = (
    "Bone structures in the study area are natural.",
    "Vertebral corpus heights are preserved.",
    "No fractures or lytic-destructive lesions were detected in the bone structures within the sections.",
    "Thoracic kyphosis is slightly increased.",
    "The soft tissues of the chest wall are natural.",
)
STABLE = (
    "No significant difference was found when compared with the previous examination.",
    "The described findings are stable compared to the previous examination.",
)
CLINICAL = (
    "Cough, dyspnea.",
    "Chest pain.",
    "Control.",
    "Fever, shortness of breath.",
    "Operated colon ca, follow-up.",
    "Back pain.",
    "Preoperative evaluation.",
    "Weakness, weight loss.",
)
TECHNIQUE = (
    "Sections were taken in the axial plane without contrast material and reconstructed in different planes.",
    "Non-contrast images were taken in the axial plane with a section thickness of {z} mm.",
    "Thoracic CT examination was performed without IV contrast.",
)
NOTHING = (
    "Thoracic CT examination within normal limits.",
    "No significant pathology was detected in the thorax.",
    "Findings within normal limits.",
)
